//! How near an address is, so that a redirect leads nobody to what only this node can reach: its own services, which
//! believe whoever is on loopback, and what answers on link-local addresses, such as the metadata of a cloud.
//!
//! In: addresses, and names as they are resolved. Out: which of them a redirect may lead to.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::node::own_addresses;

/// How near an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reach {
    /// On another host, as far as an address tells.
    Elsewhere,
    /// Link-local.
    Link,
    /// Loopback, unspecified (which connects to loopback), or an address of this node.
    Node,
}

/// An address that a redirect may not lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {}", self.what())]
pub(super) struct TooNear {
    pub address: IpAddr,
    reach: Reach,
}

impl TooNear {
    fn what(&self) -> &'static str {
        match self.reach {
            Reach::Elsewhere => "of another host",
            Reach::Link => "a link-local address",
            Reach::Node => "an address of this node",
        }
    }
}

impl Reach {
    pub fn of(address: IpAddr) -> Self {
        Self::among(address, &own_addresses().unwrap_or_default(), is_own)
    }

    fn among(address: IpAddr, own: &[IpAddr], is_own: impl Fn(IpAddr) -> bool) -> Self {
        // `::ffff:127.0.0.1` connects to 127.0.0.1.
        let address = address.to_canonical();
        let is_link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        if address.is_loopback() || address.is_unspecified() || own.contains(&address) || is_own(address) {
            Self::Node
        } else if is_link_local {
            Self::Link
        } else {
            Self::Elsewhere
        }
    }

    /// Of a source that a proxy connects to: only what its name says by itself is known here.
    pub fn of_name(url: &Url) -> Self {
        match literal(url) {
            Some(address) => Self::of(address),
            None if is_localhost(url) => Self::Node,
            None => Self::Elsewhere,
        }
    }

    /// Whether a source that is as near as this may redirect to an address: near ones are for those that are there
    /// themselves.
    pub fn permits(self, address: IpAddr) -> Result<(), TooNear> {
        self.permits_reach(address, Self::of(address))
    }

    fn permits_reach(self, address: IpAddr, reach: Self) -> Result<(), TooNear> {
        if reach == Self::Elsewhere || reach == self { Ok(()) } else { Err(TooNear { address, reach }) }
    }

    /// As [`Self::permits`], of what a URL says by itself; the addresses of a name are judged as it is resolved.
    pub fn permits_url(self, url: &Url) -> Result<(), TooNear> {
        match literal(url) {
            Some(address) => self.permits(address),
            None if is_localhost(url) => self.permits_reach(Ipv6Addr::LOCALHOST.into(), Self::Node),
            None => Ok(()),
        }
    }
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

/// A resolver may not be asked for these (RFC 6761).
fn is_localhost(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// Where the kernel tells no addresses, as in a sandbox without netlink, it still chooses the one to speak from: who is
/// spoken to from his own address is us. Nothing is sent.
fn is_own(address: IpAddr) -> bool {
    let speaks_to_itself = || {
        let unspecified = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(unspecified)?;
        socket.connect((address, 9))?;
        Ok::<_, std::io::Error>(socket.local_addr()?.ip() == address)
    };
    speaks_to_itself().unwrap_or(false)
}

/// Resolves names for redirects and gives only the addresses that they may lead to. The connection is made to what was
/// judged, so that a name which resolves to something else a moment later gains nothing.
#[derive(Debug)]
pub(super) struct Guard(pub Reach);

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (source, host) = (self.0, name.as_str().to_owned());
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let (mut permitted, mut refused) = (Vec::new(), None);
            for address in found {
                match source.permits(address.ip()) {
                    Ok(()) => permitted.push(address),
                    Err(too_near) => refused = Some(too_near),
                }
            }
            match refused.filter(|_| permitted.is_empty()) {
                // As it is: in a second box nobody would know it again.
                Some(too_near) => Err(too_near.into()),
                None => Ok(Box::new(permitted.into_iter()) as Addrs),
            }
        })
    }
}

impl Guard {
    pub fn shared(source: Reach) -> Arc<Self> {
        Arc::new(Self(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(address: &str) -> Reach {
        let own = ["192.0.2.7".parse().unwrap(), "fe80::7".parse().unwrap()];
        Reach::among(address.parse().unwrap(), &own, |_| false)
    }

    #[test]
    fn every_spelling_of_a_near_address_is_near() {
        for address in
            ["127.0.0.1", "127.255.255.254", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "192.0.2.7"]
        {
            assert_eq!(reach(address), Reach::Node, "{address}");
        }
        for address in ["::ffff:192.0.2.7", "fe80::7"] {
            assert_eq!(reach(address), Reach::Node, "{address} is our own");
        }
        for address in ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "febf::1"] {
            assert_eq!(reach(address), Reach::Link, "{address}");
        }
        for address in ["192.0.2.8", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.8"] {
            assert_eq!(reach(address), Reach::Elsewhere, "{address}");
        }
    }

    #[test]
    fn near_targets_are_for_sources_that_are_there() {
        let permits = |source: Reach, url: &str| source.permits_url(&Url::parse(url).unwrap()).is_ok();
        // As a URL is read, these are all 127.0.0.1.
        for host in [
            "127.0.0.1",
            "2130706433",
            "0x7f.1",
            "017700000001",
            "127.1",
            "[::ffff:7f00:1]",
            "localhost",
            "a.LocalHost.",
        ] {
            let url = format!("http://{host}:8222/");
            assert!(!permits(Reach::Elsewhere, &url) && !permits(Reach::Link, &url), "{url}");
            assert!(permits(Reach::Node, &url), "{url}");
        }
        let metadata = "http://169.254.169.254/latest/meta-data/";
        assert!(!permits(Reach::Elsewhere, metadata) && !permits(Reach::Node, metadata));
        assert!(permits(Reach::Link, metadata));
        assert!(permits(Reach::Elsewhere, "http://192.0.2.8/a.tgz"));
    }

    #[test]
    fn the_addresses_of_this_node_are_known_with_and_without_the_kernels_list() {
        for address in own_addresses().unwrap() {
            assert_eq!(Reach::of(address), Reach::Node, "{address}");
        }
        assert!(is_own("127.0.0.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_name_gives_only_the_addresses_that_were_judged() {
        let resolve = |source: Reach| Guard(source).resolve("localhost".parse().unwrap());
        let error = resolve(Reach::Elsewhere).await.err().unwrap();
        assert!(error.downcast_ref::<TooNear>().is_some(), "{error}");
        let addresses: Vec<_> = resolve(Reach::Node).await.unwrap().collect();
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback()));
    }
}
