#include "worker/model/checkpoint.h"

#include <filesystem>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/check.h"
#include "worker/model/json_file.h"

namespace ultraspeed::worker {
namespace {

namespace fs = std::filesystem;

constexpr size_t kFilesMax = 10000;

// A file name from an index must be a name inside the folder, not a way out of it.
bool IsPlainName(std::string_view name) {
  return !name.empty() && name.size() < 256 && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos && name[0] != '.' &&
         absl::EndsWith(absl::string_view(name.data(), name.size()), ".safetensors");
}

// tensor name -> file name
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  absl::StatusOr<boost::json::object> index = ReadJsonObject(path);
  if (!index.ok()) return index.status();
  const boost::json::value* map = index->if_contains("weight_map");
  if (map == nullptr || !map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": weight_map: must be an object"));
  }
  std::map<std::string, std::string> files;
  for (const auto& entry : map->get_object()) {
    const std::string tensor(entry.key().data(), entry.key().size());
    const std::string file =
        entry.value().is_string() ? std::string(entry.value().get_string().c_str()) : std::string();
    if (!IsPlainName(file)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": weight_map: tensor ", tensor, ": file ",
                       boost::json::serialize(entry.value()).substr(0, 100),
                       " must be the name of a .safetensors file in the same folder"));
    }
    files[tensor] = file;
  }
  return files;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& folder,
                                                             const Layout& layout) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->folder_ = folder;
  const std::string index_path = folder + "/model.safetensors.index.json";
  if (fs::exists(index_path)) {
    if (absl::Status s = checkpoint->OpenIndexed(folder, index_path, layout); !s.ok()) return s;
    return checkpoint;
  }
  for (const std::string& name : layout.single_files) {
    const std::string path = folder + "/" + name;
    if (!fs::exists(path)) continue;
    absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
    if (!file.ok()) return file.status();
    if (absl::Status s = checkpoint->Add(*std::move(file), layout); !s.ok()) return s;
    return checkpoint;
  }
  return absl::NotFoundError(absl::StrCat(folder, ": has neither model.safetensors.index.json nor ",
                                          layout.single_files.front()));
}

absl::Status Checkpoint::OpenIndexed(const std::string& folder, const std::string& index_path,
                                     const Layout& layout) {
  absl::StatusOr<std::map<std::string, std::string>> index = ReadIndex(index_path);
  if (!index.ok()) return index.status();
  std::set<std::string> names;
  for (const auto& [tensor, file] : *index) names.insert(file);
  if (names.size() > kFilesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(index_path, ": names ", names.size(), " files; at most ", kFilesMax));
  }
  std::map<std::string, std::string> found;
  for (const std::string& name : names) {
    absl::StatusOr<std::unique_ptr<SafetensorsFile>> file =
        SafetensorsFile::Open(folder + "/" + name);
    if (!file.ok()) return file.status();
    for (const TensorView& tensor : (*file)->tensors()) {
      const auto entry = index->find(tensor.name);
      if (entry == index->end() || entry->second != name) {
        return absl::InvalidArgumentError(absl::StrCat((*file)->path(), ": tensor ", tensor.name,
                                                       ": the index does not place it here"));
      }
      found[tensor.name] = name;
    }
    if (absl::Status s = Add(*std::move(file), layout); !s.ok()) return s;
  }
  for (const auto& [tensor, file] : *index) {
    if (found.count(tensor) == 0) {
      return absl::InvalidArgumentError(absl::StrCat(folder, "/", file, ": tensor ", tensor,
                                                     ": is in the index, not in the file"));
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::Add(std::unique_ptr<SafetensorsFile> file, const Layout& layout) {
  for (const TensorView& tensor : file->tensors()) {
    const std::string name(absl::StripPrefix(tensor.name, layout.optional_prefix));
    if (!layout.skip_prefix.empty() && absl::StartsWith(name, layout.skip_prefix)) continue;
    if (!entries_.emplace(name, Entry{tensor, file.get(), false}).second) {
      return absl::InvalidArgumentError(absl::StrCat(file->path(), ": tensor ", tensor.name,
                                                     ": appears twice in the checkpoint"));
    }
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::StatusOr<TensorView> Checkpoint::Take(const std::string& name, std::string_view dtype,
                                            const std::vector<int64_t>& shape) {
  const auto found = entries_.find(name);
  const std::string expected = ShapeName(std::string(dtype), shape);
  if (found == entries_.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder_, ": tensor ", name, ": is missing; the config calls for ", expected));
  }
  Entry& entry = found->second;
  KERNELS_CHECK(entry.taken, ==, false);
  if (entry.tensor.dtype != dtype || entry.tensor.shape != shape) {
    return absl::InvalidArgumentError(absl::StrCat(
        entry.file->path(), ": tensor ", name, ": is ",
        ShapeName(entry.tensor.dtype, entry.tensor.shape), "; the config calls for ", expected));
  }
  entry.taken = true;
  return entry.tensor;
}

const TensorView* Checkpoint::Find(const std::string& name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second.tensor;
}

const std::string& Checkpoint::PathOf(const std::string& name) const {
  return entries_.at(name).file->path();
}

std::string Checkpoint::DtypeOf(const std::string& name) const {
  const TensorView* const tensor = Find(name);
  return tensor == nullptr ? "" : tensor->dtype;
}

absl::Status Checkpoint::ExpectAllTaken() const {
  for (const auto& [name, entry] : entries_) {
    if (entry.taken) continue;
    return absl::InvalidArgumentError(absl::StrCat(entry.file->path(), ": tensor ",
                                                   entry.tensor.name,
                                                   ": the config calls for no such tensor"));
  }
  return absl::OkStatus();
}

}  // namespace ultraspeed::worker
