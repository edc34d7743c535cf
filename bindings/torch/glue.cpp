// SPDX-License-Identifier: Apache-2.0
//
// The whole glue as one translation unit: torch's headers take far longer to compile than we do.
#include "backend.cpp"
#include "collectives.cpp"
#include "device.cpp"
#include "errands.cpp"
#include "errors.cpp"
#include "flight_recorder.cpp"
#include "generic_device.cpp"
#include "group.cpp"
#include "lists.cpp"
#include "module.cpp"
#include "point_to_point.cpp"
#include "resident.cpp"
#include "store.cpp"
#include "tensor.cpp"
#include "work.cpp"
