// SPDX-License-Identifier: Apache-2.0
//
// OpenSSL's libssl, found at run time (3.x, or 1.1.1): the functions that a TLS session of ours
// needs, declared by us, so that one binary serves every node. tls.cpp is the only user.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.hpp"

namespace hccomm::transport::tls {

// OpenSSL's own types, never looked into.
struct Ssl;
struct Context;
struct Bio;
struct BioMethod;
struct Method;

using PskClient = unsigned(Ssl*, const char* hint, char* identity, unsigned identity_room,
                           unsigned char* psk, unsigned psk_room);
using PskServer = unsigned(Ssl*, const char* identity, unsigned char* psk, unsigned psk_room);
using BioWrite = int(Bio*, const char*, int);
using BioRead = int(Bio*, char*, int);
using BioCtrl = long(Bio*, int, long, void*);
using BioMake = int(Bio*);

// Every function keeps the name that OpenSSL gives it.
// clang-format off: it would make a staircase of the list
#define HCCOMM_LIBSSL(use) \
  use(TLS_method, const Method*()) \
  use(SSL_CTX_new, Context*(const Method*)) \
  use(SSL_CTX_free, void(Context*)) \
  use(SSL_CTX_ctrl, long(Context*, int, long, void*)) \
  use(SSL_CTX_set_options, std::uint64_t(Context*, std::uint64_t)) \
  use(SSL_CTX_set_ciphersuites, int(Context*, const char*)) \
  use(SSL_CTX_set_num_tickets, int(Context*, std::size_t)) \
  use(SSL_CTX_set_default_read_buffer_len, void(Context*, std::size_t)) \
  use(SSL_CTX_set_psk_client_callback, void(Context*, PskClient*)) \
  use(SSL_CTX_set_psk_server_callback, void(Context*, PskServer*)) \
  use(SSL_new, Ssl*(Context*)) \
  use(SSL_free, void(Ssl*)) \
  use(SSL_set_verify, void(Ssl*, int, void*)) \
  use(SSL_set_bio, void(Ssl*, Bio*, Bio*)) \
  use(SSL_set_ex_data, int(Ssl*, int, void*)) \
  use(SSL_get_ex_data, void*(const Ssl*, int)) \
  use(SSL_set_connect_state, void(Ssl*)) \
  use(SSL_set_accept_state, void(Ssl*)) \
  use(SSL_do_handshake, int(Ssl*)) \
  use(SSL_session_reused, int(const Ssl*)) \
  use(SSL_read, int(Ssl*, void*, int)) \
  use(SSL_write, int(Ssl*, const void*, int)) \
  use(SSL_get_error, int(const Ssl*, int)) \
  use(SSL_key_update, int(Ssl*, int)) \
  use(ERR_clear_error, void()) \
  use(ERR_get_error, unsigned long()) \
  use(ERR_error_string_n, void(unsigned long, char*, std::size_t)) \
  use(BIO_s_socket, const BioMethod*()) \
  use(BIO_meth_new, BioMethod*(int, const char*)) \
  use(BIO_meth_get_read, BioRead*(const BioMethod*)) \
  use(BIO_meth_set_read, int(BioMethod*, BioRead*)) \
  use(BIO_meth_get_write, BioWrite*(const BioMethod*)) \
  use(BIO_meth_set_write, int(BioMethod*, BioWrite*)) \
  use(BIO_meth_get_ctrl, BioCtrl*(const BioMethod*)) \
  use(BIO_meth_set_ctrl, int(BioMethod*, BioCtrl*)) \
  use(BIO_meth_get_create, BioMake*(const BioMethod*)) \
  use(BIO_meth_set_create, int(BioMethod*, BioMake*)) \
  use(BIO_meth_get_destroy, BioMake*(const BioMethod*)) \
  use(BIO_meth_set_destroy, int(BioMethod*, BioMake*)) \
  use(BIO_get_new_index, int()) \
  use(BIO_new, Bio*(const BioMethod*)) \
  use(BIO_ctrl, long(Bio*, int, long, void*)) \
  use(BIO_set_flags, void(Bio*, int)) \
  use(BIO_clear_flags, void(Bio*, int)) \
  use(BIO_test_flags, int(const Bio*, int)) \
  use(BIO_set_ex_data, int(Bio*, int, void*)) \
  use(BIO_get_ex_data, void*(const Bio*, int))
// clang-format on

struct Library {
#define HCCOMM_DECLARE(name, ...)  \
  using name##_type = __VA_ARGS__; \
  name##_type* name = nullptr;
  HCCOMM_LIBSSL(HCCOMM_DECLARE)
#undef HCCOMM_DECLARE
  Status status;  // why it cannot be used, or ok
};

// Looked up once. Thread: any.
const Library& library();

}  // namespace hccomm::transport::tls
