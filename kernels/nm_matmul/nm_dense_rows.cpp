#include "nm_matmul/nm_rows.h"
#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)
namespace snn_core {
extern const NMDenseKernel SNN_CONCAT(nm_dense_, SNN_ISA){nullptr, nullptr, nullptr, nullptr};
}
