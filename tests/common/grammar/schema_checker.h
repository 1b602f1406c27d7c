// Whether a value is valid against a JSON Schema of the keywords that grammars support, read as the
// standard says and written apart from the code under test; patterns, of bytes.
#pragma once

#include <boost/json.hpp>

namespace ultraspeed::grammar {

bool IsValid(const boost::json::value& value, const boost::json::value& schema,
             const boost::json::value& root);

}  // namespace ultraspeed::grammar
