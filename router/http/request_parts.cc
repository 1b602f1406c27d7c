#include "router/http/request_parts.h"

#include <boost/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace ultraspeed::router {

std::string ReadModel(RequestFields& fields) {
  if (fields.Find("model") == nullptr) fields.Refuse("model", "the name of a model");
  return fields.String("model").value_or("");
}

void ReadSampling(RequestFields& fields, v1::SamplingParams* sampling) {
  if (const auto value = fields.Number("temperature")) {
    sampling->set_temperature(static_cast<float>(*value));
  }
  if (const auto value = fields.Number("top_p")) sampling->set_top_p(static_cast<float>(*value));
  if (const auto value = fields.Int32("top_k")) sampling->set_top_k(*value);
  if (const auto value = fields.Bits64("seed")) sampling->set_seed(*value);
}

void ReadSpeculation(RequestFields& fields, v1::GenerateOptions* options) {
  if (const auto value = fields.Bool("speculation")) options->set_speculation(*value);
  if (const auto value = fields.Bool("ignore_eos")) options->set_ignore_eos(*value);
}

bool ReadOpenAiTier(RequestFields& fields, v1::GenerateOptions* options) {
  const std::string tier =
      fields.Choice("service_tier", {"auto", "default", "standard", "priority", "ultraspeed"});
  if (tier == "default" || tier == "standard") {
    options->set_service_tier(v1::SERVICE_TIER_STANDARD);
  } else if (tier == "priority" || tier == "ultraspeed") {
    options->set_service_tier(v1::SERVICE_TIER_ULTRASPEED);
  }
  return tier == "standard" || tier == "ultraspeed";
}

std::optional<bool> ReadThinking(RequestFields& fields) {
  const boost::json::object* thinking = fields.Object("thinking");
  if (thinking == nullptr) return std::nullopt;
  RequestFields inner(*thinking, "thinking.");
  const std::string type = inner.Choice("type", {"enabled", "adaptive", "disabled"});
  if (type.empty()) inner.Refuse("type", "enabled, adaptive or disabled");
  fields.Merge(inner.status());
  return type != "disabled";
}

absl::Status AddFunction(RequestFields& function, absl::string_view schema,
                         v1::ChatRequest* request) {
  v1::Tool* tool = request->add_tools();
  tool->set_name(function.String("name").value_or(""));
  if (const auto description = function.String("description")) tool->set_description(*description);
  if (const boost::json::object* parameters = function.Object(schema)) {
    tool->set_parameters_json(boost::json::serialize(*parameters));
  }
  tool->set_strict(function.Bool("strict").value_or(false));
  return function.status();
}

absl::StatusOr<std::string> ReadTexts(RequestFields& fields, absl::string_view name,
                                      const std::vector<absl::string_view>& types,
                                      absl::string_view part) {
  const boost::json::value* value = fields.Find(name);
  if (value != nullptr && value->is_string()) return std::string(value->get_string());
  const boost::json::array* items = value == nullptr ? nullptr : value->if_array();
  if (items == nullptr) {
    fields.Refuse(name, absl::StrCat("a string or an array of ", part, "s"));
    return fields.status();
  }
  std::vector<std::string> texts;
  RETURN_IF_ERROR(ForEachObject(*items, fields.PathOf(name), absl::StrCat("a ", part),
                                [&](RequestFields& item) {
                                  if (item.Choice("type", types).empty())
                                    item.Refuse("type", absl::StrJoin(types, " or "));
                                  const auto text = item.String("text");
                                  if (!text) item.Refuse("text", "a string");
                                  texts.push_back(text.value_or(""));
                                  return item.status();
                                }));
  return absl::StrJoin(texts, "\n");
}

absl::Status ForEachObject(const boost::json::array& items, absl::string_view path,
                           absl::string_view must_be,
                           absl::FunctionRef<absl::Status(RequestFields& item)> visit) {
  for (size_t i = 0; i < items.size(); ++i) {
    const std::string item_path = absl::StrCat(path, "[", i, "]");
    if (!items[i].is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat(item_path, " is no object; it must be ", must_be));
    }
    RequestFields item(items[i].get_object(), item_path + ".");
    RETURN_IF_ERROR(visit(item));
  }
  return absl::OkStatus();
}

}  // namespace ultraspeed::router
