/* SPDX-License-Identifier: Apache-2.0
 *
 * A libfabric whose provider vanishes: it hands all to the system's, until the file named by
 * FAILING_FABRIC is there. From then on every write, and every look at a completion queue, gives
 * FI_EIO.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_rma.h>
#include <stdlib.h>
#include <unistd.h>

static void* real(const char* name, const char* version) {
  void* library = dlopen("libfabric.so.1", RTLD_NOW | RTLD_LOCAL);
  void* found = library == NULL   ? NULL
                : version == NULL ? dlsym(library, name)
                                  : dlvsym(library, name, version);
  if (found == NULL) abort();
  return found;
}

static int vanished(void) {
  static const char* file = NULL;
  if (file == NULL) file = getenv("FAILING_FABRIC");
  return file != NULL && access(file, F_OK) == 0;
}

/* Tables of a provider are shared and constant: ours are copies, of the latest one opened. OURS
 * copies an object's table and has the object use the copy. */
#define OURS(table, member) (member##_real = (table), member##_ops = *member##_real, &member##_ops)
static struct fi_ops_fabric fabric_ops, *fabric_real;
static struct fi_ops_domain domain_ops, *domain_real;
static struct fi_ops_cq cq_ops, *cq_real;
static struct fi_ops_rma rma_ops, *rma_real;

static ssize_t cq_read(struct fid_cq* cq, void* buffer, size_t count) {
  return vanished() ? -FI_EIO : cq_real->read(cq, buffer, count);
}

static ssize_t writemsg(struct fid_ep* ep, const struct fi_msg_rma* message, uint64_t flags) {
  return vanished() ? -FI_EIO : rma_real->writemsg(ep, message, flags);
}

static ssize_t writedata(struct fid_ep* ep, const void* data, size_t bytes, void* desc,
                         uint64_t bits, fi_addr_t to, uint64_t at, uint64_t key, void* context) {
  return vanished() ? -FI_EIO
                    : rma_real->writedata(ep, data, bytes, desc, bits, to, at, key, context);
}

static ssize_t injectdata(struct fid_ep* ep, const void* data, size_t bytes, uint64_t bits,
                          fi_addr_t to, uint64_t at, uint64_t key) {
  return vanished() ? -FI_EIO : rma_real->injectdata(ep, data, bytes, bits, to, at, key);
}

static int cq_open(struct fid_domain* domain, struct fi_cq_attr* attr, struct fid_cq** out,
                   void* context) {
  int code = domain_real->cq_open(domain, attr, out, context);
  if (code != 0) return code;
  (*out)->ops = OURS((*out)->ops, cq);
  cq_ops.read = cq_read;
  return 0;
}

static int endpoint(struct fid_domain* domain, struct fi_info* info, struct fid_ep** out,
                    void* context) {
  int code = domain_real->endpoint(domain, info, out, context);
  if (code != 0 || info->ep_attr->type != FI_EP_RDM) return code; /* a part of the provider's own */
  (*out)->rma = OURS((*out)->rma, rma);
  rma_ops.writemsg = writemsg;
  rma_ops.writedata = writedata;
  rma_ops.injectdata = injectdata;
  return 0;
}

static int domain(struct fid_fabric* fabric, struct fi_info* info, struct fid_domain** out,
                  void* context) {
  int code = fabric_real->domain(fabric, info, out, context);
  if (code != 0) return code;
  (*out)->ops = OURS((*out)->ops, domain);
  domain_ops.cq_open = cq_open;
  domain_ops.endpoint = endpoint;
  return 0;
}

int fi_fabric(struct fi_fabric_attr* attr, struct fid_fabric** out, void* context) {
  int (*open)(struct fi_fabric_attr*, struct fid_fabric**, void*) = real("fi_fabric", "FABRIC_1.1");
  int code = open(attr, out, context);
  if (code != 0) return code;
  (*out)->ops = OURS((*out)->ops, fabric);
  fabric_ops.domain = domain;
  return 0;
}

int fi_getinfo(uint32_t version, const char* node, const char* service, uint64_t flags,
               const struct fi_info* hints, struct fi_info** info) {
  int (*get)(uint32_t, const char*, const char*, uint64_t, const struct fi_info*,
             struct fi_info**) = real("fi_getinfo", "FABRIC_1.3");
  return get(version, node, service, flags, hints, info);
}

void fi_freeinfo(struct fi_info* info) {
  void (*free_it)(struct fi_info*) = real("fi_freeinfo", "FABRIC_1.3");
  free_it(info);
}

struct fi_info* fi_dupinfo(const struct fi_info* info) {
  struct fi_info* (*copy)(const struct fi_info*) = real("fi_dupinfo", "FABRIC_1.3");
  return copy(info);
}

uint32_t fi_version(void) {
  uint32_t (*ask)(void) = real("fi_version", NULL);
  return ask();
}

const char* fi_strerror(int code) {
  const char* (*ask)(int) = real("fi_strerror", NULL);
  return ask(code);
}
