// Which path of nm_spikes a product takes when it is not told.
#pragma once

#include <cstdint>
#include <functional>

#include "nm_matmul/nm_rows.h"

namespace snn_core {

// The path with the least expected time on one thread; `rate` is asked for only where it decides.
int nm_fastest_path(const NMWeight& w, int64_t rows, const std::function<double()>& rate);

}  // namespace snn_core
