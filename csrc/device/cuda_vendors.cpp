// SPDX-License-Identifier: Apache-2.0
//
// The vendors of CUDA-shaped runtimes: a further one is one entry here and one line in
// builtins.inc. Names are from the vendors' public headers; docs/devices.md says which of them have
// been run.
#include <array>
#include <string_view>

#include "device/cuda_shaped.hpp"
#include "device/registry.hpp"

namespace hccomm::device {

// Where vendors that ship CUDA's file names install them: (part of the path, kind).
static constexpr std::array<std::pair<const char*, const char*>, 13> kOwners = {{
    {"corex", "corex"},
    {"iluvatar", "corex"},
    {"/dtk", "dtk"},
    {"hygon", "dtk"},
    {"galaxyhip", "dtk"},
    {"/ppu", "ppu"},
    {"PPU", "ppu"},
    {"t-head", "ppu"},
    {"hggc", "ppu"},
    {"kunlun", "kunlun"},
    {"/xpu", "kunlun"},
    {"/xre", "kunlun"},
    {"xcudart", "kunlun"},
}};

std::string owner_of(const std::string& path) {
  for (const auto& [part, kind] : kOwners) {
    if (path.find(part) != std::string::npos) return kind;
  }
  return "";
}

static const std::vector<std::string> kCudaDriver = {"libcuda.so.1", "libcuda.so"};

static Result<std::unique_ptr<Runtime>> cuda() {
  return open_cuda_shaped({"cuda",
                           "cuda",
                           "cu",
                           "cuMemGetHandleForAddressRange",
                           "an NVIDIA GPU and its driver",
                           {"libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0",
                            "libcudart.so", "/usr/local/cuda/lib64/libcudart.so"},
                           kCudaDriver,
                           false,
                           1});  // FI_HMEM_CUDA
}
Builtin cuda_device() { return {Kind::Cuda, "cuda", "NVIDIA, CUDA runtime", cuda}; }

static Result<std::unique_ptr<Runtime>> hip() {
  return open_cuda_shaped({"hip",
                           "hip",
                           "hip",
                           "hipMemGetHandleForAddressRange",
                           "an AMD GPU and its kernel driver",
                           {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5",
                            "libamdhip64.so", "/opt/rocm/lib/libamdhip64.so"},
                           {},
                           false,
                           2});  // FI_HMEM_ROCR
}
Builtin hip_device() { return {Kind::Hip, "hip", "AMD, HIP runtime", hip}; }

static Result<std::unique_ptr<Runtime>> musa() {
  return open_cuda_shaped({"musa",
                           "musa",
                           "mu",
                           "muMemGetHandleForAddressRange",
                           "a Moore Threads GPU and its driver",
                           {"libmusart.so.5", "libmusart.so.4", "libmusart.so.1", "libmusart.so",
                            "/usr/local/musa/lib/libmusart.so"},
                           {"libmusa.so.1", "libmusa.so"}});
}
Builtin musa_device() { return {Kind::Musa, "musa", "Moore Threads, MUSA runtime", musa}; }

static Result<std::unique_ptr<Runtime>> maca() {
  return open_cuda_shaped({"maca",
                           "mc",
                           "mc",
                           "mcMemGetHandleForAddressRange",
                           "a MetaX GPU and its driver",
                           {"libmcruntime.so", "/opt/maca/lib/libmcruntime.so"},
                           {}});
}
Builtin maca_device() { return {Kind::Maca, "maca", "MetaX, MACA runtime", maca}; }

static Result<std::unique_ptr<Runtime>> supa() {
  return open_cuda_shaped(
      {"supa",
       "supa",
       "su",
       "suMemGetHandleForAddressRange",
       "a Biren GPU and its driver",
       {"libsupart.so", "/usr/local/birensupa/all/latest/supa/lib/libsupart.so"},
       {"libsupa.so"}});
}
Builtin supa_device() { return {Kind::Supa, "supa", "Biren, SUPA runtime", supa}; }

static Result<std::unique_ptr<Runtime>> tops() {
  return open_cuda_shaped({"tops",
                           "tops",
                           "tops",
                           nullptr,
                           "an Enflame GCU and its driver",
                           {"libtopsrt.so", "/opt/tops/lib/libtopsrt.so"},
                           {}});
}
Builtin tops_device() { return {Kind::Tops, "tops", "Enflame, TOPS runtime", tops}; }

static Result<std::unique_ptr<Runtime>> tang() {
  return open_cuda_shaped({"tang",
                           "tang",
                           "ta",
                           nullptr,
                           "a Sunrise chip and its driver",
                           {"libtangrt_shared.so", "/usr/local/tangrt/lib/libtangrt_shared.so"},
                           {}});
}
Builtin tang_device() { return {Kind::Tang, "tang", "Sunrise, Tang runtime", tang}; }

static Result<std::unique_ptr<Runtime>> corex() {
  return open_cuda_shaped({"corex",
                           "cuda",
                           "cu",
                           nullptr,
                           "an Iluvatar GPU and its driver",
                           {"/usr/local/corex/lib64/libcudart.so", "libcudart.so"},
                           kCudaDriver,
                           true});
}
Builtin corex_device() { return {Kind::Corex, "corex", "Iluvatar CoreX, its libcudart", corex}; }

// DTK speaks HIP under another file name, and CUDA in a folder of its own.
static Result<std::unique_ptr<Runtime>> dtk() {
  auto native =
      open_cuda_shaped({"dtk",
                        "hip",
                        "hip",
                        nullptr,
                        "a Hygon DCU and its driver",
                        {"libgalaxyhip.so.5", "libgalaxyhip.so", "/opt/dtk/lib/libgalaxyhip.so"},
                        {}});
  if (native.ok()) return native;
  auto cuda_layer = open_cuda_shaped({"dtk",
                                      "cuda",
                                      "cu",
                                      nullptr,
                                      "a Hygon DCU and its driver",
                                      {"/opt/dtk/cuda/lib64/libcudart.so", "libcudart.so"},
                                      kCudaDriver,
                                      true});
  return cuda_layer.ok() ? std::move(cuda_layer) : std::move(native);
}
Builtin dtk_device() { return {Kind::Dtk, "dtk", "Hygon DCU, DTK: HIP, or its libcudart", dtk}; }

static Result<std::unique_ptr<Runtime>> ppu() {
  return open_cuda_shaped(
      {"ppu",
       "cuda",
       "cu",
       nullptr,
       "a T-Head PPU and its driver",
       {"/usr/local/PPU_SDK/lib/libcudart.so", "libcudart.so.12", "libcudart.so"},
       kCudaDriver,
       true});
}
Builtin ppu_device() { return {Kind::Ppu, "ppu", "T-Head PPU, its libcudart", ppu}; }

static Result<std::unique_ptr<Runtime>> kunlun() {
  return open_cuda_shaped(
      {"kunlun",
       "cuda",
       "cu",
       nullptr,
       "a Kunlun XPU and its driver",
       {"/usr/local/xcudart/lib/libcudart.so", "libcudart.so.12", "libcudart.so"},
       kCudaDriver,
       true});
}
Builtin kunlun_device() { return {Kind::Kunlun, "kunlun", "Kunlunxin XPU, its libcudart", kunlun}; }

}  // namespace hccomm::device
