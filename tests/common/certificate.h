// A key and a certificate made on the spot, for tests of TLS. Any thread.
#pragma once

#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

#include "common/uuid.h"

namespace ultraspeed::testing {

inline std::string PemOf(int (*write)(BIO*, const void*), const void* object) {
  const std::unique_ptr<BIO, decltype(&BIO_free_all)> bio(BIO_new(BIO_s_mem()), &BIO_free_all);
  EXPECT_EQ(write(bio.get(), object), 1);
  char* data = nullptr;
  const long num_bytes = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<size_t>(num_bytes));
}

// A key and a self-signed certificate for localhost that is its own authority, as files.
class Certificate {
 public:
  Certificate() : stem_(::testing::TempDir() + "/tls_" + NewUuidV7()) {
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(EVP_EC_gen("P-256"),
                                                                  &EVP_PKEY_free);
    const std::unique_ptr<X509, decltype(&X509_free)> cert(X509_new(), &X509_free);
    X509_set_version(cert.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert.get()), -3600);
    X509_gmtime_adj(X509_getm_notAfter(cert.get()), 3600);
    X509_NAME* name = X509_get_subject_name(cert.get());
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
    X509_set_issuer_name(cert.get(), name);
    X509_set_pubkey(cert.get(), key.get());
    AddExtension(cert.get(), NID_basic_constraints, "critical,CA:TRUE");
    AddExtension(cert.get(), NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1");
    EXPECT_GT(X509_sign(cert.get(), key.get(), EVP_sha256()), 0);
    std::ofstream(cert_file()) << PemOf(
        [](BIO* bio, const void* c) {
          return PEM_write_bio_X509(bio, static_cast<const X509*>(c));
        },
        cert.get());
    std::ofstream(key_file()) << PemOf(
        [](BIO* bio, const void* k) {
          return PEM_write_bio_PrivateKey(bio, static_cast<const EVP_PKEY*>(k), nullptr, nullptr, 0,
                                          nullptr, nullptr);
        },
        key.get());
  }
  ~Certificate() {
    std::remove(cert_file().c_str());
    std::remove(key_file().c_str());
  }
  std::string cert_file() const { return stem_ + ".crt"; }
  std::string key_file() const { return stem_ + ".key"; }

 private:
  static void AddExtension(X509* cert, int nid, const char* value) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value);
    X509_add_ext(cert, extension, -1);
    X509_EXTENSION_free(extension);
  }

  const std::string stem_;
};

}  // namespace ultraspeed::testing
