//! Variables that an orchestrator puts into each container because some service is called `machinesd`, or
//! `machinesd-something`: <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables> and
//! Docker's links, <https://docs.docker.com/engine/network/links/#environment-variables>. In: a variable. Out: whether it
//! is one of those, by the exact shape of its name and of its value.

use std::net::{IpAddr, SocketAddr};

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Whether nobody meant a setting by it. A service's own name may stand between the prefix and the rest.
pub fn is_of_a_service(name: &str, value: &str) -> bool {
    // MACHINESD_SERVICE_HOST, MACHINESD_WEB_SERVICE_HOST, MACHINESD_PORT_8098_TCP_ADDR, …: what follows the service's name.
    let rests = name.match_indices('_').filter_map(|(at, _)| name.get(at + 1..));
    rests.into_iter().any(|rest| is_address(rest, value) || is_port(rest, value) || is_link(rest, value))
}

/// What Kubernetes alone sets.
fn is_address(rest: &str, value: &str) -> bool {
    match rest.strip_prefix("SERVICE_") {
        Some("HOST") => value.parse::<IpAddr>().is_ok(),
        Some(port) if port == "PORT" || port.starts_with("PORT_") => value.parse::<u16>().is_ok(),
        _ => false,
    }
}

/// What both set: `PORT`, and for each port `PORT_8098_TCP` with its parts.
fn is_port(rest: &str, value: &str) -> bool {
    if rest == "PORT" {
        return url(value).is_some();
    }
    let mut words = rest.splitn(4, '_');
    let (Some("PORT"), Some(number), Some(protocol)) = (words.next(), words.next(), words.next()) else { return false };
    let (Ok(number), true) = (number.parse::<u16>(), PROTOCOLS.contains(&protocol)) else { return false };
    match words.next() {
        None => url(value).is_some_and(|(of, port)| of.eq_ignore_ascii_case(protocol) && port == number),
        Some("PROTO") => value.eq_ignore_ascii_case(protocol),
        Some("PORT") => value.parse() == Ok(number),
        Some("ADDR") => value.parse::<IpAddr>().is_ok(),
        Some(_) => false,
    }
}

/// `/web/machinesd`: this container's name, and its name for the other one.
fn is_link(rest: &str, value: &str) -> bool {
    let mut parts = value.split('/');
    let is_name = |part: Option<&str>| part.is_some_and(|part| !part.is_empty());
    rest == "NAME"
        && parts.next() == Some("")
        && is_name(parts.next())
        && is_name(parts.next())
        && parts.next().is_none()
}

/// `tcp://10.0.0.1:80`.
fn url(value: &str) -> Option<(&str, u16)> {
    let (protocol, address) = value.split_once("://")?;
    let known = PROTOCOLS.iter().any(|known| known.to_ascii_lowercase() == protocol);
    let address: SocketAddr = address.parse().ok().filter(|_| known)?;
    Some((protocol, address.port()))
}
