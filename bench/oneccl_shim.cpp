// SPDX-License-Identifier: Apache-2.0
//
// oneCCL's C++ interface on host memory as C functions for ctypes. bench/oneccl_adapter.py compiles
// this against the headers of pip's oneccl-cpu-devel; it is no part of hccomm. Blocking calls on
// f32 and f64; each returns 0, or 1 after printing why not.
#include <cstdio>
#include <cstring>
#include <memory>
#include <oneapi/ccl.hpp>

static std::unique_ptr<ccl::communicator> comm;
static ccl::shared_ptr_class<ccl::kvs> kvs;

template <typename Body>
static int guarded(Body&& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "oneCCL: %s\n", error.what());
    return 1;
  }
}

static ccl::datatype type_of(int item) {
  return item == 8 ? ccl::datatype::float64 : ccl::datatype::float32;
}

extern "C" {

// Rank 0 makes the address of the key-value store (256 bytes); the others are given it.
int shim_address(char* address) {
  return guarded([&] {
    ccl::init();
    kvs = ccl::create_main_kvs();
    const auto made = kvs->get_address();
    std::memcpy(address, made.data(), made.size());
  });
}

int shim_init(int rank, int size, const char* address) {
  return guarded([&] {
    ccl::init();
    if (rank != 0) {
      ccl::kvs::address_type given;
      std::memcpy(given.data(), address, given.size());
      kvs = ccl::create_kvs(given);
    }
    comm = std::make_unique<ccl::communicator>(ccl::create_communicator(size, rank, kvs));
  });
}

int shim_all_reduce(const void* in, void* out, size_t count, int item) {
  return guarded(
      [&] { ccl::allreduce(in, out, count, type_of(item), ccl::reduction::sum, *comm).wait(); });
}

int shim_reduce_scatter(const void* in, void* out, size_t count, int item) {
  return guarded([&] {
    ccl::reduce_scatter(in, out, count, type_of(item), ccl::reduction::sum, *comm).wait();
  });
}

int shim_broadcast(void* data, size_t count, int item, int root) {
  return guarded([&] { ccl::broadcast(data, count, type_of(item), root, *comm).wait(); });
}

int shim_all_gather(const void* in, void* out, size_t count, int item) {
  return guarded([&] { ccl::allgather(in, out, count, type_of(item), *comm).wait(); });
}

int shim_all_to_all(const void* in, void* out, size_t count, int item) {
  return guarded([&] { ccl::alltoall(in, out, count, type_of(item), *comm).wait(); });
}

int shim_barrier() {
  return guarded([&] { ccl::barrier(*comm); });
}
}
