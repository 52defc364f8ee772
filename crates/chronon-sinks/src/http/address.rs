//! Which addresses an effect may go to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of the public internet. What a sink names comes from people who set sinks, and must not become a way
/// into the network that the replicas stand in, unless its configuration says `allow_private`.
#[derive(Clone, Copy, Debug)]
pub struct PublicOnly;

impl PublicOnly {
    /// Whether the address is one of the public internet.
    pub fn allows(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => public_v4(address),
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(mapped) => public_v4(mapped),
                None => public_v6(address),
            },
        }
    }
}

fn public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocol = a == 192 && b == 0 && c == 0;
    let benchmark = a == 198 && (b == 18 || b == 19);
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || 240 <= a
        || shared
        || protocol
        || benchmark)
}

fn public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let global_unicast = first & 0xe000 == 0x2000;
    let documentation = first == 0x2001 && second == 0x0db8;
    // 6to4 and NAT64 hold an IPv4 address that this check would not see.
    let wraps_v4 = first == 0x2002 || (first == 0x2001 && second == 0);
    global_unicast && !documentation && !wraps_v4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for address in
            ["1.1.1.1", "8.8.8.8", "172.32.0.1", "192.169.0.1", "2606:4700::1111", "::ffff:8.8.8.8"]
        {
            assert!(PublicOnly.allows(address.parse().unwrap()), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert!(!PublicOnly.allows(address.parse().unwrap()), "{address}");
        }
    }
}
