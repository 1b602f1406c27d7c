// How the rows of a product are split over threads; shared by matmul.cc and moe.cc.
#pragma once

#include <cstdint>

#include "kernels/cpu/kernel_table.h"
#include "kernels/thread_pool.h"

namespace ultraspeed::kernels {

struct RowSplit {
  int rows_per_task;
  int num_tasks;
};
RowSplit SplitRows(const ThreadPool& pool, int num_rows, int64_t multiply_adds);

}  // namespace ultraspeed::kernels
