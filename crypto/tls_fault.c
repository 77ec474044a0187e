/* Owns the words for why a TLS stream failed: one clause for a log line, from OpenSSL's error
 * queue, the socket's errno, or the verification of a certificate.
 *
 * Thread: the one on which the failing call was made (OpenSSL's error queue belongs to a thread).
 */
#include <ctype.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509_vfy.h>
#include <string.h>

#include "crypto/tls_internal.h"

static const struct {
    int reason;
    const char *text;
} reasons[] = {
    {SSL_R_UNSUPPORTED_PROTOCOL, "TLS 1.3 is not offered"},
    {SSL_R_TLSV1_ALERT_PROTOCOL_VERSION, "TLS 1.3 is not offered"},
    {SSL_R_VERSION_TOO_LOW, "TLS 1.3 is not offered"},
    {SSL_R_WRONG_SSL_VERSION, "TLS 1.3 is not offered"},
    {SSL_R_WRONG_VERSION_NUMBER, "the peer does not speak TLS"},
    {SSL_R_HTTP_REQUEST, "the peer does not speak TLS but HTTP"},
    {SSL_R_HTTPS_PROXY_REQUEST, "the peer does not speak TLS but HTTP"},
    {SSL_R_NO_SHARED_CIPHER, "the peer offers no cipher that is accepted"},
    {SSL_R_NO_SUITABLE_KEY_SHARE, "the peer offers no key exchange that is accepted"},
    {SSL_R_NO_SUITABLE_GROUPS, "the peer offers no key exchange that is accepted"},
    {SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM, "the peer offers no signature that is accepted"},
    {SSL_R_NO_SHARED_SIGNATURE_ALGORITHMS, "the peer offers no signature that is accepted"},
    {SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE, "the peer shows no certificate"},
    {SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED, "the peer demands a certificate and got none"},
    {SSL_R_TLSV1_ALERT_UNKNOWN_CA, "the peer finds our certificate issued by another swarm"},
    {SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED, "the peer finds our certificate expired"},
    {SSL_R_SSLV3_ALERT_BAD_CERTIFICATE, "the peer refuses our certificate"},
    {SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN, "the peer refuses our certificate"},
    {SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE, "the peer refuses the handshake"},
    {SSL_R_EXCESSIVE_MESSAGE_SIZE, "the peer sent a handshake message that is too long"},
    {SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC, "a record was damaged on its way"},
    {SSL_R_UNEXPECTED_EOF_WHILE_READING, "the connection ended in the middle"},
};

/* "Connection refused" as a clause: "connection refused". */
void tls_fault_of_errno(int error, char why[TLS_WHY_SIZE])
{
    const char *text = strerrordesc_np(error);
    snprintf(why, TLS_WHY_SIZE, "%s", text != NULL ? text : "the socket failed");
    if (islower((unsigned char)why[1]))
        why[0] = (char)tolower((unsigned char)why[0]);
}

static void describe_reason(bool ready, unsigned long error, char why[TLS_WHY_SIZE])
{
    int reason = ERR_GET_REASON(error);

    if (ERR_GET_LIB(error) == ERR_LIB_SSL) {
        for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
            if (reasons[i].reason == reason) {
                snprintf(why, TLS_WHY_SIZE, "%s", reasons[i].text);
                return;
            }
        }
        if (reason > SSL_AD_REASON_OFFSET) { /* an alert that came from the peer */
            snprintf(why, TLS_WHY_SIZE, "the peer ended the connection: %s",
                     SSL_alert_desc_string_long(reason - SSL_AD_REASON_OFFSET));
            return;
        }
    }
    const char *text = ERR_reason_error_string(error);
    snprintf(why, TLS_WHY_SIZE, "%s: %s", ready ? "TLS failed" : "the handshake failed",
             text != NULL ? text : "no reason known");
}

void tls_fault_describe(const struct tls *tls, bool ready, int ssl_error, char why[TLS_WHY_SIZE])
{
    unsigned long error = ERR_peek_error();

    if (tls->verify_fault != NULL)
        snprintf(why, TLS_WHY_SIZE, "%s", tls->verify_fault);
    else if (tls_socket_is_flooded(tls))
        snprintf(why, TLS_WHY_SIZE, "the peer sends key updates instead of data");
    else if (tls->io_error != 0)
        tls_fault_of_errno(tls->io_error, why);
    else if (tls->eof)
        snprintf(why, TLS_WHY_SIZE, "%s",
                 ready ? "the connection ended without the peer closing it in order"
                       : "the peer closed the connection during the handshake");
    else if (error != 0)
        describe_reason(ready, error, why);
    else
        snprintf(why, TLS_WHY_SIZE, "TLS failed (%d)", ssl_error);
    ERR_clear_error();
}

const char *tls_fault_of_verification(int x509_error)
{
    switch (x509_error) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        return "the peer's certificate has expired";
    case X509_V_ERR_CERT_NOT_YET_VALID:
        return "the peer's certificate is not valid yet (are the clocks right?)";
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    case X509_V_ERR_CERT_CHAIN_TOO_LONG:
        return "the peer's certificate was issued by another swarm";
    case X509_V_ERR_EE_KEY_TOO_SMALL:
    case X509_V_ERR_CA_KEY_TOO_SMALL:
        return "the peer's certificate holds a key that is too short";
    case X509_V_ERR_CA_MD_TOO_WEAK:
        return "the peer's certificate is signed with an algorithm that is too weak";
    case X509_V_ERR_INVALID_PURPOSE:
    case X509_V_ERR_INVALID_CA:
        return "the peer's certificate is not made for this";
    default:
        return X509_verify_cert_error_string(x509_error); /* static for every known code */
    }
}
