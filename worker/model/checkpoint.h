// All tensors of one folder, whether it has one .safetensors file or an index over many; each is
// taken once, with the dtype and the shape that the config calls for, and what nobody takes is
// refused by name.
//
// Caller: weights.cc, once for the target and once for dflash/. Thread: the loading thread only.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/safetensors.h"

namespace ultraspeed::worker {

class Checkpoint {
 public:
  // Reads `folder`/model.safetensors.index.json or, if there is none, the first of `single_files`
  // that exists. A leading `optional_prefix` is dropped from tensor names; names that start with
  // `skip_prefix` (if not empty) are left out.
  struct Layout {
    std::vector<std::string> single_files;
    std::string optional_prefix;
    std::string skip_prefix;
  };
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& folder,
                                                          const Layout& layout);

  // Exactly this dtype and shape, else INVALID_ARGUMENT names file and tensor. REQUIRES: not taken
  // before.
  absl::StatusOr<TensorView> Take(const std::string& name, std::string_view dtype,
                                  const std::vector<int64_t>& shape);

  // Null if there is no such tensor; valid while this object lives.
  const TensorView* Find(const std::string& name) const;
  // The file that a tensor is in. REQUIRES: there is such a tensor.
  const std::string& PathOf(const std::string& name) const;
  // The dtype that a tensor has, "" if there is no such tensor.
  std::string DtypeOf(const std::string& name) const;

  // INVALID_ARGUMENT names a tensor that was never taken.
  absl::Status ExpectAllTaken() const;

 private:
  struct Entry {
    TensorView tensor;
    const SafetensorsFile* file;
    bool taken;
  };

  absl::Status Add(std::unique_ptr<SafetensorsFile> file, const Layout& layout);
  absl::Status OpenIndexed(const std::string& folder, const std::string& index_path,
                           const Layout& layout);

  std::string folder_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> entries_;
};

}  // namespace ultraspeed::worker
