#include "worker/model/mask_embedding.h"

#include <cstring>
#include <map>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "worker/model/json_file.h"
#include "worker/model/stored_zip.h"

namespace ultraspeed::worker {
namespace {

constexpr int64_t kFileBytesMax = 16 << 20;
constexpr size_t kStackMax = 64;
constexpr size_t kMemoMax = 256;
constexpr size_t kPartsMax =
    256;  // of one value: bounds its depth too, and what copies of it can grow to
constexpr size_t kTextBytesMax = 256;

// A value on the pickle machine's stack.
struct Value {
  enum class Kind {
    kMark,
    kInt,
    kBool,
    kString,
    kGlobal,
    kTuple,
    kDict,
    kOrderedDict,
    kStorage,
    kTensor
  };
  Kind kind = Kind::kMark;
  int64_t number = 0;     // kInt, kBool; kStorage: elements
  std::string text = {};  // kString, kGlobal "module name"; kStorage, kTensor: key of the storage
  std::vector<Value> items = {};  // kTuple; kDict: key, value, key, value
  size_t parts = 1;               // this value and all values inside it
};
using Kind = Value::Kind;

// Interprets exactly the instructions that pickle protocol 2 uses for the one value that this file
// may hold.
class Unpickler {
 public:
  Unpickler(std::string origin, std::string_view program)
      : origin_(std::move(origin)), program_(program) {}

  absl::StatusOr<Value> Run() {
    while (status_.ok() && !stopped_) Step();
    if (!status_.ok()) return status_;
    if (stack_.size() != 1)
      return absl::InvalidArgumentError(
          absl::StrCat(origin_, ": pickle leaves ", stack_.size(), " values"));
    return stack_.back();
  }

 private:
  void Fail(const std::string& what) {
    if (status_.ok())
      status_ =
          absl::InvalidArgumentError(absl::StrCat(origin_, ": pickle at byte ", at_, ": ", what));
  }

  std::string_view Take(size_t bytes) {
    if (program_.size() - at_ < bytes) {
      Fail("ends too early");
      return {};
    }
    const std::string_view taken = program_.substr(at_, bytes);
    at_ += bytes;
    return taken;
  }

  uint32_t TakeUint(size_t bytes) {
    uint32_t value = 0;
    const std::string_view taken = Take(bytes);
    if (!taken.empty()) std::memcpy(&value, taken.data(), taken.size());
    return value;
  }

  std::string TakeLine() {
    const size_t newline = program_.find('\n', at_);
    if (newline == std::string_view::npos) {
      Fail("a name has no end");
      return "";
    }
    const std::string line(program_.substr(at_, newline - at_));
    at_ = newline + 1;
    return line;
  }

  void Push(Value value) {
    CountParts(value);
    if (stack_.size() >= kStackMax || value.parts > kPartsMax) return Fail("too many values");
    stack_.push_back(std::move(value));
  }

  static void CountParts(Value& value) {
    value.parts = 1;
    for (const Value& item : value.items) value.parts += item.parts;
  }

  Value Pop() {
    if (stack_.empty()) {
      Fail("no value to take");
      return {};
    }
    Value value = std::move(stack_.back());
    stack_.pop_back();
    return value;
  }

  std::vector<Value> PopToMark() {
    size_t mark = stack_.size();
    while (mark > 0 && stack_[mark - 1].kind != Kind::kMark) --mark;
    if (mark == 0) {
      Fail("no mark");
      return {};
    }
    std::vector<Value> items(stack_.begin() + static_cast<ptrdiff_t>(mark), stack_.end());
    stack_.resize(mark - 1);
    return items;
  }

  void PushTuple(size_t count) {
    Value tuple{.kind = Kind::kTuple};
    tuple.items.resize(count);
    for (size_t i = count; i-- > 0;) tuple.items[i] = Pop();
    Push(std::move(tuple));
  }

  void Memorize(uint32_t index) {
    if (stack_.empty() || memo_.size() >= kMemoMax) return Fail("memo misused");
    memo_[index] = stack_.back();
  }

  void Recall(uint32_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) return Fail("memo misused");
    Push(found->second);
  }

  void PushText(uint32_t bytes) {
    if (bytes > kTextBytesMax) return Fail("a text is too long");
    Push({.kind = Kind::kString, .text = std::string(Take(bytes))});
  }

  void PushGlobal() {
    std::string name = TakeLine();
    name = absl::StrCat(name, " ", TakeLine());
    if (name != "torch._utils _rebuild_tensor_v2" && name != "torch BFloat16Storage" &&
        name != "collections OrderedDict") {
      return Fail(absl::StrCat("refers to \"", absl::CHexEscape(name.substr(0, 80)),
                               "\"; only a bf16 tensor may be in this file"));
    }
    Push({.kind = Kind::kGlobal, .text = name});
  }

  // ("storage", torch.BFloat16Storage, key, device, elements)
  void PushStorage() {
    const Value id = Pop();
    if (id.kind != Kind::kTuple || id.items.size() != 5 || id.items[0].text != "storage" ||
        id.items[1].text != "torch BFloat16Storage" || id.items[2].kind != Kind::kString ||
        id.items[3].kind != Kind::kString || id.items[4].kind != Kind::kInt) {
      return Fail("the tensor must be of bf16");
    }
    Push({.kind = Kind::kStorage, .number = id.items[4].number, .text = id.items[2].text});
  }

  void Call() {
    const Value arguments = Pop();
    const Value function = Pop();
    if (function.kind != Kind::kGlobal || arguments.kind != Kind::kTuple) return Fail("bad call");
    const std::vector<Value>& a = arguments.items;
    if (function.text == "collections OrderedDict" && a.empty()) {
      return Push({.kind = Kind::kOrderedDict});
    }
    // (storage, offset, (size,), (stride,), requires_grad, hooks): only a whole storage as one row.
    const bool whole_vector =
        function.text == "torch._utils _rebuild_tensor_v2" && a.size() == 6 &&
        a[0].kind == Kind::kStorage && a[1].kind == Kind::kInt && a[1].number == 0 &&
        a[2].kind == Kind::kTuple && a[2].items.size() == 1 && a[2].items[0].kind == Kind::kInt &&
        a[2].items[0].number == a[0].number && a[3].kind == Kind::kTuple &&
        a[3].items.size() == 1 && a[3].items[0].kind == Kind::kInt && a[3].items[0].number == 1 &&
        a[4].kind == Kind::kBool && a[5].kind == Kind::kOrderedDict;
    if (!whole_vector) return Fail("the embedding must be one contiguous vector");
    Push({.kind = Kind::kTensor, .number = a[0].number, .text = a[0].text});
  }

  void SetItems(std::vector<Value> items) {
    if (stack_.empty() || stack_.back().kind != Kind::kDict || items.size() % 2 != 0) {
      return Fail("bad dictionary");
    }
    std::vector<Value>& all = stack_.back().items;
    all.insert(all.end(), items.begin(), items.end());
    CountParts(stack_.back());
    if (stack_.back().parts > kPartsMax) Fail("too many values");
  }

  void Step() {
    const std::string_view opcode = Take(1);
    if (opcode.empty()) return;
    switch (static_cast<uint8_t>(opcode[0])) {
      case 0x80:
        if (TakeUint(1) > 5) Fail("protocol above 5");
        break;  // PROTO
      case '.':
        stopped_ = true;
        break;  // STOP
      case '(':
        Push({.kind = Kind::kMark});
        break;  // MARK
      case '}':
        Push({.kind = Kind::kDict});
        break;  // EMPTY_DICT
      case ')':
        Push({.kind = Kind::kTuple});
        break;  // EMPTY_TUPLE
      case 't':
        Push({.kind = Kind::kTuple, .items = PopToMark()});
        break;  // TUPLE
      case 0x85:
        PushTuple(1);
        break;  // TUPLE1
      case 0x86:
        PushTuple(2);
        break;  // TUPLE2
      case 'K':
        Push({.kind = Kind::kInt, .number = TakeUint(1)});
        break;  // BININT1
      case 'M':
        Push({.kind = Kind::kInt, .number = TakeUint(2)});
        break;  // BININT2
      case 'J':
        Push({.kind = Kind::kInt, .number = static_cast<int32_t>(TakeUint(4))});
        break;  // BININT
      case 0x88:
        Push({.kind = Kind::kBool, .number = 1});
        break;  // NEWTRUE
      case 0x89:
        Push({.kind = Kind::kBool});
        break;  // NEWFALSE
      case 'X':
        PushText(TakeUint(4));
        break;  // BINUNICODE
      case 'q':
        Memorize(TakeUint(1));
        break;  // BINPUT
      case 'r':
        Memorize(TakeUint(4));
        break;  // LONG_BINPUT
      case 'h':
        Recall(TakeUint(1));
        break;  // BINGET
      case 'j':
        Recall(TakeUint(4));
        break;  // LONG_BINGET
      case 'c':
        PushGlobal();
        break;  // GLOBAL
      case 'Q':
        PushStorage();
        break;  // BINPERSID
      case 'R':
        Call();
        break;  // REDUCE
      case 'u':
        SetItems(PopToMark());
        break;     // SETITEMS
      case 's': {  // SETITEM
        Value value = Pop();
        Value key = Pop();
        SetItems({std::move(key), std::move(value)});
        break;
      }
      default:
        --at_;
        Fail(absl::StrCat("instruction ", static_cast<int>(static_cast<uint8_t>(opcode[0])),
                          " is not allowed"));
    }
  }

  std::string origin_;
  std::string_view program_;
  size_t at_ = 0;
  bool stopped_ = false;
  absl::Status status_;
  std::vector<Value> stack_;
  std::map<uint32_t, Value> memo_;
};

const Value* Find(const Value& dict, std::string_view key) {
  for (size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    if (dict.items[i].kind == Kind::kString && dict.items[i].text == key) return &dict.items[i + 1];
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<MaskEmbedding> ReadMaskEmbedding(const std::string& path, int hidden) {
  const auto damaged = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
  };
  absl::StatusOr<std::string> archive = ReadFile(path, kFileBytesMax);
  if (!archive.ok()) return archive.status();
  absl::StatusOr<std::map<std::string, std::string_view>> entries = ReadStoredZip(path, *archive);
  if (!entries.ok()) return entries.status();

  // The archive's top folder has any name; everything is relative to the folder of data.pkl.
  std::string prefix;
  const std::string_view* program = nullptr;
  for (const auto& [name, content] : *entries) {
    if (!absl::EndsWith(name, "/data.pkl")) continue;
    if (program != nullptr) return damaged("has two data.pkl");
    program = &content;
    prefix = name.substr(0, name.size() - std::string_view("data.pkl").size());
  }
  if (program == nullptr) return damaged("has no data.pkl");
  const auto order = entries->find(prefix + "byteorder");
  if (order != entries->end() && order->second != "little") return damaged("must be little-endian");

  absl::StatusOr<Value> root = Unpickler(path, *program).Run();
  if (!root.ok()) return root.status();
  const Value* id = root->kind == Kind::kDict ? Find(*root, "mask_token_id") : nullptr;
  const Value* tensor = root->kind == Kind::kDict ? Find(*root, "embedding") : nullptr;
  if (id == nullptr || id->kind != Kind::kInt || tensor == nullptr ||
      tensor->kind != Kind::kTensor || root->items.size() != 4) {
    return damaged("must hold {mask_token_id: int, embedding: tensor} and nothing else");
  }
  if (tensor->number != hidden) {
    return damaged(
        absl::StrCat("embedding: has ", tensor->number, " values; the config calls for ", hidden));
  }
  const auto storage = entries->find(absl::StrCat(prefix, "data/", tensor->text));
  const size_t bytes = static_cast<size_t>(hidden) * sizeof(kernels::bf16);
  if (storage == entries->end() || storage->second.size() != bytes) {
    return damaged(absl::StrCat("embedding: its storage must have ", bytes, " bytes"));
  }
  MaskEmbedding mask;
  mask.mask_token_id = id->number;
  mask.embedding.resize(static_cast<size_t>(hidden));
  std::memcpy(mask.embedding.data(), storage->second.data(), bytes);
  for (const kernels::bf16 value : mask.embedding) {
    if ((value & 0x7F80) == 0x7F80) return damaged("embedding: holds a value that is not finite");
  }
  return mask;
}

}  // namespace ultraspeed::worker
