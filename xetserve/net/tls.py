"""TLS contexts."""

import ssl


def make_client_context() -> ssl.SSLContext:
    """Make the context for upstream connections.

    Certificates are checked against the system's CAs; SSL_CERT_FILE and SSL_CERT_DIR replace them.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
