// Rows with a head, in columns as wide as their widest cell. Numbers are lined up on the right.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace ultraspeed::client {

class Table {
 public:
  explicit Table(std::vector<std::string> head) : rows_{std::move(head)} {}

  // REQUIRES: as many cells as the head has.
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string Text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace ultraspeed::client
