//! The addresses of this host by interface, asked of the kernel over route netlink (`rtnetlink(7)`). `/proc` has them
//! for IPv6 only. Nothing that is read here is trusted to be well-formed: every read of the reply is bounded.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const REQUEST_ADDRESSES: u16 = 22;
const NEW_ADDRESS: u16 = 20;
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const FLAGS: u16 = 0x301;
const HEADER_BYTES: usize = 16;
const ADDRESS_HEADER_BYTES: usize = 8;
const ATTRIBUTE_ADDRESS: u16 = 1;
const ATTRIBUTE_LOCAL: u16 = 2;
/// A host with more than this many replies has its further addresses left out.
const REPLIES_MAXIMUM: usize = 256;

/// All addresses of this host.
///
/// # Errors
/// As [`by_interface`].
pub fn own() -> io::Result<Vec<IpAddr>> {
    Ok(by_interface()?.into_values().flatten().collect())
}

/// # Errors
/// When the kernel refuses the question, for example in a sandbox without netlink.
pub(super) fn by_interface() -> io::Result<BTreeMap<String, Vec<IpAddr>>> {
    // Protocol 0 is `NETLINK_ROUTE`.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, &request(), SendFlags::empty())?;
    let mut found: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    let mut buffer = vec![0u8; 64 * 1024];
    for _ in 0..REPLIES_MAXIMUM {
        // The kernel answers within the system call, so that not waiting loses nothing and can never hang.
        let (length, _) = recv(&socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT)?;
        let reply = parse(buffer.get(..length).unwrap_or_default());
        for (index, address) in reply.addresses {
            let Ok(name) = rustix::net::netdevice::index_to_name(&socket, index) else {
                continue;
            };
            found.entry(name).or_default().push(address);
        }
        if reply.last {
            break;
        }
    }
    for addresses in found.values_mut() {
        addresses.sort();
        addresses.dedup();
    }
    Ok(found)
}

fn request() -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + ADDRESS_HEADER_BYTES).unwrap_or_default();
    let mut request = Vec::new();
    request.extend(length.to_ne_bytes());
    request.extend(REQUEST_ADDRESSES.to_ne_bytes());
    request.extend(FLAGS.to_ne_bytes());
    // Sequence number and sender: one question on an own socket needs neither. Then the zeroed `ifaddrmsg`.
    request.extend([0; 8 + ADDRESS_HEADER_BYTES]);
    request
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Reply {
    /// Interface index and address.
    pub(super) addresses: Vec<(u32, IpAddr)>,
    /// Nothing follows.
    pub(super) last: bool,
}

/// Reads one datagram; what is cut off or of an unknown kind is skipped.
pub(super) fn parse(mut datagram: &[u8]) -> Reply {
    let mut reply = Reply { addresses: Vec::new(), last: datagram.is_empty() };
    while let (Some(length), Some(kind)) = (number(datagram, 0), short(datagram, 4)) {
        let length = length as usize;
        let Some(message) = datagram.get(HEADER_BYTES..length) else {
            reply.last = true;
            return reply;
        };
        match kind {
            DONE | ERROR => reply.last = true,
            NEW_ADDRESS => reply.addresses.extend(address(message)),
            _ => {}
        }
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
    }
    reply
}

/// An `ifaddrmsg` with its attributes. On a point-to-point link `IFA_ADDRESS` is the other end, so that `IFA_LOCAL`,
/// where there is one, is the address of this host.
fn address(message: &[u8]) -> Option<(u32, IpAddr)> {
    let index = number(message, 4)?;
    let mut attributes = message.get(ADDRESS_HEADER_BYTES..)?;
    let (mut local, mut other) = (None, None);
    while let (Some(length), Some(kind)) = (short(attributes, 0), short(attributes, 2)) {
        let length = usize::from(length);
        let value = attributes.get(4..length)?;
        match kind {
            ATTRIBUTE_LOCAL => local = read_address(value),
            ATTRIBUTE_ADDRESS => other = read_address(value),
            _ => {}
        }
        attributes = attributes.get(aligned(length)..).unwrap_or_default();
    }
    local.or(other).map(|address| (index, address))
}

fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// Messages and attributes start at multiples of four bytes; at least four, so that a length of zero ends the reading.
fn aligned(length: usize) -> usize {
    length.div_ceil(4).max(1) * 4
}
