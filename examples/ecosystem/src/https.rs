//! A connector of hyper-util's client for `https` and `http`: kittiwake's connector, and TLS by futures-rustls on top.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_rustls::TlsConnector;
use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use kittiwake::hyper::{Connector, Io};
use kittiwake::io::{AsyncRead, AsyncWrite};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tower_service::Service;

/// Connects by TCP, and with `https` addresses by TLS. Offers HTTP/2 and HTTP/1 there.
#[derive(Clone)]
pub struct HttpsConnector {
    tcp: Connector,
    tls: TlsConnector,
}

impl HttpsConnector {
    /// Makes a connector that trusts servers with a certificate of one of `roots`.
    pub fn new(roots: RootCertStore) -> Self {
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self { tcp: Connector::new().enforce_http(false), tls: TlsConnector::from(Arc::new(config)) }
    }
}

impl Service<Uri> for HttpsConnector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_ready(cx)
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let (connecting, tls) = (self.tcp.call(url.clone()), self.tls.clone());
        Box::pin(async move {
            let https = match url.scheme_str() {
                Some("http") => false,
                Some("https") => true,
                _ => {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "only http:// and https:// are supported"));
                }
            };
            let tcp = connecting.await?.into_inner();
            if !https {
                return Ok(Stream { io: Io::new(Box::new(tcp)), http2: false });
            }
            let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let stream = tls.connect(name, tcp).await?;
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok(Stream { io: Io::new(Box::new(stream)), http2 })
        })
    }
}

/// A connection with or without TLS, for hyper, and the protocol that it has agreed on.
pub struct Stream {
    io: Io<Box<dyn Duplex>>,
    http2: bool,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        if self.http2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Write::poll_write(Pin::new(&mut self.io), cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Write::poll_write_vectored(Pin::new(&mut self.io), cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Write::poll_flush(Pin::new(&mut self.io), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Write::poll_shutdown(Pin::new(&mut self.io), cx)
    }
}
