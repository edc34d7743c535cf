// SPDX-License-Identifier: Apache-2.0
//
// The whole simulated device as one translation unit: torch's headers take longer than we do.
#include "memory.cpp"
#include "native.cpp"
#include "operators.cpp"
#include "runtime.cpp"
#include "torch_device.cpp"
