// A folder of a test's own under the system's temporary folder, removed with the object.
#pragma once

#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>
#include <system_error>

namespace ultraspeed {

class TemporaryFolder {
 public:
  explicit TemporaryFolder(
      const std::filesystem::path& parent = std::filesystem::temp_directory_path())
      : path_((parent / "ultraspeed-XXXXXX").string()) {
    if (mkdtemp(path_.data()) != nullptr) return;
    std::cerr << "cannot make a folder like " << path_ << "\n";
    std::abort();
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!is_kept_) std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

  // Of a test that failed: says where its logs stay.
  void Keep() {
    is_kept_ = true;
    std::cout << "logs are kept in " << path_ << "\n";
  }

 private:
  std::string path_;
  bool is_kept_ = false;
};

}  // namespace ultraspeed
