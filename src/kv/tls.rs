//! The one TLS provider of the process: ring. reqwest and async-nats both take rustls' process-wide default, so it is
//! installed in one place and before either is used.

/// Makes ring the TLS provider of this process. Calling it again, or after somebody else installed one, changes
/// nothing.
pub fn install_tls_provider() {
    // An error means that a provider is installed already, which is what the caller wants.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
