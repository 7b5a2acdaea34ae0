// Convolutions on the event path whose weight fits the cache: the spikes of each row of an image are listed once, for
// all the windows that it lies under, instead of once for each of them.
#pragma once

#include "nm_matmul/nm_engine.h"

namespace snn_core {

// Whether this way is open; the results are the engine's, bit for bit.
bool nm_takes_windows(const NMProblem& problem);
void nm_run_windows(const NMProblem& problem, const NMSink& sink);

}  // namespace snn_core
