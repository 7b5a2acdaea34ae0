// Says in every library which sources it was built from. Kernels are registered boxed, so torch does not notice one that
// was built for another schema; the loader (native/__init__.py) looks for this text in the file before it loads it.

#define SNN_TEXT_OF(name) #name
#define SNN_TEXT(name) SNN_TEXT_OF(name)

extern "C" __attribute__((visibility("default"))) const char* snn_core_sources() {
  return "snn_core-sources:" SNN_TEXT(SNN_SOURCE_HASH);
}
