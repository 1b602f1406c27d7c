#include "router/request_decoder.h"

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/unknown_field_set.h"
#include "grpcpp/support/slice.h"
#include "router/unicode.h"

namespace ultraspeed::router {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

// Path and reason of the first bad string below `fields`, or nullopt. Depth is that of the message
// type: our messages do not recurse.
std::optional<std::string> FindBadString(const UnknownFieldSet& fields, const Descriptor& type,
                                         const std::string& prefix) {
  std::map<int, int> num_seen;  // field number -> occurrences, for the index of a repeated field
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* declared = type.FindFieldByNumber(field.number());
    if (declared == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    std::string path = absl::StrCat(prefix, declared->name());
    if (declared->is_repeated()) absl::StrAppend(&path, "[", num_seen[field.number()]++, "]");
    if (declared->type() == FieldDescriptor::TYPE_STRING) {
      const size_t offset = FirstInvalidByte(field.length_delimited());
      if (offset < field.length_delimited().size()) {
        return absl::StrCat(path, ": not valid UTF-8 at byte ", offset);
      }
    } else if (declared->type() == FieldDescriptor::TYPE_MESSAGE) {
      UnknownFieldSet inner;
      if (!inner.ParseFromString(field.length_delimited())) {
        return absl::StrCat(path, ": not a well-formed ", declared->message_type()->name());
      }
      if (auto bad = FindBadString(inner, *declared->message_type(), absl::StrCat(path, "."))) {
        return bad;
      }
    }
  }
  return std::nullopt;
}

std::string Flatten(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string flat;
  if (!bytes.Dump(&slices).ok()) return flat;
  flat.reserve(bytes.Length());
  for (const grpc::Slice& slice : slices) {
    flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return flat;
}

}  // namespace

absl::Status DecodeRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  const std::string flat = Flatten(bytes);
  if (message->ParseFromString(flat)) return absl::OkStatus();
  const std::string& type_name = message->GetDescriptor()->name();
  UnknownFieldSet fields;
  if (!fields.ParseFromString(flat)) {
    return absl::InvalidArgumentError(
        absl::StrCat("request: ", flat.size(), " bytes are not a well-formed ", type_name));
  }
  if (auto bad = FindBadString(fields, *message->GetDescriptor(), "")) {
    return absl::InvalidArgumentError(*bad);
  }
  return absl::InvalidArgumentError(absl::StrCat("request: not a well-formed ", type_name));
}

}  // namespace ultraspeed::router
