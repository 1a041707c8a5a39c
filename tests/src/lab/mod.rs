//! A lab network on this machine: hosts in network namespaces, joined by bridges in a namespace of their own.
//!
//! ```text
//! host 0: eth0 10.77.0.1 ── p0 ┐
//! host 1: eth0 10.77.0.2 ── p1 ┼ br0      br1 ── parted hosts        (switch's namespace)
//! host 2: eth0 10.77.0.3 ── p2 ┘
//! ```
//!
//! As on a field there is no default route and no DNS. Nothing exists in the machine's own namespace, so that labs
//! run side by side, in one process or in several. Dropping a lab kills the processes in it and deletes it; the
//! remains of a killed test are deleted by the next one.
//!
//! A lab needs root and `ip`. Without them [`Lab::or_skip`] prints a message on standard error and returns nothing;
//! with `SWARM_LAB=required` in the environment it fails instead.

mod namespaces;

use std::fmt;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::process::Process;

/// Most hosts of one lab: the limit of its addressing, far beyond the load that two cores carry.
pub const HOSTS_MAX: usize = 250;

/// Why a lab is not possible on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkipReason(pub String);

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The lab. Hosts are numbered from 0.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    addresses: Vec<Ipv4Addr>,
    /// The ports of the switch: host, its interface there, and the bridge that it belongs to.
    ports: Vec<Port>,
    logs: TempDir,
}

#[derive(Debug, Clone)]
struct Port {
    host: usize,
    network: usize,
    name: String,
}

/// The bridge of a network.
fn bridge(network: usize) -> String {
    format!("br{network}")
}

fn partition_bridge(network: usize) -> String {
    format!("parted{network}")
}

impl Lab {
    /// Builds a network of this many hosts.
    ///
    /// # Errors
    /// [`SkipReason`] if this machine cannot.
    pub fn new(hosts: usize) -> Result<Self, SkipReason> {
        if hosts > HOSTS_MAX {
            return Err(SkipReason(format!("{hosts} hosts are more than {HOSTS_MAX}")));
        }
        namespaces::check_machine()?;
        namespaces::delete_stale();
        let mut lab = Self {
            prefix: namespaces::next_prefix(),
            addresses: Vec::new(),
            ports: Vec::new(),
            logs: TempDir::with_prefix("swarmlab-")
                .map_err(|e| SkipReason(format!("no temporary directory: {e}")))?,
        };
        lab.build(hosts)?;
        Ok(lab)
    }

    /// Builds a network, or prints why not: `let Some(lab) = Lab::or_skip(2) else { return };`
    ///
    /// # Panics
    /// If it cannot, and the environment has `SWARM_LAB=required`.
    pub fn or_skip(hosts: usize) -> Option<Self> {
        let why = match Self::new(hosts) {
            Ok(lab) => return Some(lab),
            Err(why) => why,
        };
        assert!(
            std::env::var_os("SWARM_LAB").is_none_or(|wish| wish != "required"),
            "no laboratory: {why}"
        );
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // Written directly, because the output of `eprintln!` is hidden when a test passes.
        let _written = std::io::stderr().write_all(format!("skipped: {test}: {why}\n").as_bytes());
        None
    }

    fn build(&mut self, hosts: usize) -> Result<(), SkipReason> {
        let switch = self.switch();
        try_ip(&["netns", "add", &switch])?;
        self.add_bridges(0)?;
        for host in 0..hosts {
            let namespace = self.namespace(host);
            try_ip(&["netns", "add", &namespace])?;
            self.addresses.push(address(0, host));
            try_ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
            self.add_port(host, 0)?;
        }
        Ok(())
    }

    fn add_bridges(&self, network: usize) -> Result<(), SkipReason> {
        let switch = self.switch();
        for bridge in [bridge(network), partition_bridge(network)] {
            // Snooping would need a querier; without it multicast is flooded, as by a simple switch.
            let kind = ["type", "bridge", "mcast_snooping", "0", "forward_delay", "0"];
            try_ip(&[&["-n", &switch, "link", "add", &bridge][..], &kind].concat())?;
            try_ip(&["-n", &switch, "link", "set", &bridge, "up"])?;
        }
        Ok(())
    }

    fn add_port(&mut self, host: usize, network: usize) -> Result<(), SkipReason> {
        let (switch, namespace) = (self.switch(), self.namespace(host));
        let (port, interface) = (format!("p{network}-{host}"), interface(network));
        let mac = mac(network, host);
        let peer = ["address", &mac, "netns", &namespace];
        let pair = ["type", "veth", "peer", "name", &interface];
        try_ip(&[&["-n", &switch, "link", "add", &port][..], &pair, &peer].concat())?;
        try_ip(&["-n", &switch, "link", "set", &port, "master", &bridge(network)])?;
        try_ip(&["-n", &switch, "link", "set", &port, "up"])?;
        try_ip(&["-n", &namespace, "link", "set", &interface, "up"])?;
        let cidr = format!("{}/16", address(network, host));
        try_ip(&[
            "-n", &namespace, "addr", "add", &cidr, "brd", "+", "dev", &interface,
        ])?;
        self.ports.push(Port {
            host,
            network,
            name: port,
        });
        Ok(())
    }

    /// The namespace of a host, for `ip -n`.
    pub fn namespace(&self, host: usize) -> String {
        format!("{}h{host}", self.prefix)
    }

    fn switch(&self) -> String {
        format!("{}sw", self.prefix)
    }

    /// Number of hosts.
    pub fn hosts(&self) -> usize {
        self.addresses.len()
    }

    /// The current address of a host's first interface.
    pub fn ip(&self, host: usize) -> Ipv4Addr {
        self.addresses[host]
    }

    /// The directory of the logs, kept if the test fails.
    pub fn logs(&self) -> &Path {
        self.logs.path()
    }

    /// A command that will run on a host.
    pub fn command(&self, host: usize, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace(host)])
            .arg(program.as_ref());
        command
    }

    /// Runs a command on a host to its end.
    ///
    /// # Panics
    /// If it does not start.
    pub fn run(&self, host: usize, program: &str, args: &[&str]) -> Output {
        let mut command = self.command(host, program);
        command.args(args).stdin(Stdio::null());
        command.output().expect("ip netns exec runs")
    }

    /// Starts a program on a host; its logs are `NAME.out` and `NAME.err`.
    pub fn spawn(&self, host: usize, name: &str, program: impl AsRef<Path>, args: &[&str]) -> Process {
        let mut command = self.command(host, program);
        command.args(args);
        Process::spawn(command, name, self.logs())
    }

    /// Sets a host's first interface down, as `ifdown` or a crashed driver does: its routes are removed.
    pub fn link_down(&self, host: usize) {
        ip(&["-n", &self.namespace(host), "link", "set", "eth0", "down"]);
    }

    /// Sets it up again, with its address.
    pub fn link_up(&self, host: usize) {
        ip(&["-n", &self.namespace(host), "link", "set", "eth0", "up"]);
    }

    /// Unplugs a host's cable (`false`) or plugs it in again: the interface stays up, without a carrier.
    pub fn set_carrier(&self, host: usize, plugged: bool) {
        for port in self.ports.iter().filter(|port| port.host == host) {
            let state = if plugged { "up" } else { "down" };
            ip(&["-n", &self.switch(), "link", "set", &port.name, state]);
        }
    }

    /// Changes the address of a host's first interface within its network.
    pub fn set_address(&mut self, host: usize, new: Ipv4Addr) {
        let namespace = self.namespace(host);
        let old = format!("{}/16", self.addresses[host]);
        let cidr = format!("{new}/16");
        // In this order: the kernel removes all addresses of a network with the first.
        ip(&["-n", &namespace, "addr", "del", &old, "dev", "eth0"]);
        ip(&["-n", &namespace, "addr", "add", &cidr, "brd", "+", "dev", "eth0"]);
        self.addresses[host] = new;
    }

    /// Joins hosts by another network on an interface of their own, 10.78.0.0/16 and up, and returns their addresses
    /// there.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn add_network(&mut self, hosts: &[usize]) -> Vec<Ipv4Addr> {
        let network = self.ports.iter().map(|port| port.network + 1).max().unwrap_or(1);
        self.add_bridges(network).unwrap_or_else(|why| panic!("{why}"));
        for host in hosts {
            self.add_port(*host, network)
                .unwrap_or_else(|why| panic!("{why}"));
        }
        hosts.iter().map(|host| address(network, *host)).collect()
    }

    /// Separates these hosts from the others; they stay joined among themselves, and every carrier stays up.
    pub fn partition(&self, hosts: &[usize]) {
        for port in self.ports.iter().filter(|port| hosts.contains(&port.host)) {
            self.move_port(port, &partition_bridge(port.network));
        }
    }

    /// Joins all hosts again.
    pub fn heal(&self) {
        for port in &self.ports {
            self.move_port(port, &bridge(port.network));
        }
    }

    fn move_port(&self, port: &Port, bridge: &str) {
        ip(&["-n", &self.switch(), "link", "set", &port.name, "master", bridge]);
    }

    /// Whether the switch forwards multicast. Without it, mDNS and IPv6 do not work.
    pub fn set_multicast(&self, passed: bool) {
        self.set_flood_flag("mcast_flood", passed);
    }

    /// Whether the switch forwards broadcast. ARP is broadcast, so without it every host gets permanent neighbours;
    /// an address that changes later is not reachable.
    pub fn set_broadcast(&self, passed: bool) {
        if !passed {
            self.add_permanent_neighbours();
        }
        self.set_flood_flag("bcast_flood", passed);
    }

    fn set_flood_flag(&self, flag: &str, passed: bool) {
        let state = if passed { "on" } else { "off" };
        for port in &self.ports {
            let args = [
                "-n",
                &self.switch(),
                "link",
                "set",
                "dev",
                &port.name,
                flag,
                state,
            ];
            run_or_panic("bridge", &args);
        }
    }

    /// Writes every host into the neighbour table of every other. The kernel's table holds 1,024 learned entries for
    /// all namespaces together, which 33 hosts that all talk to one another exceed.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn add_permanent_neighbours(&self) {
        for host in 0..self.hosts() {
            let batch: String = (0..self.hosts())
                .filter(|other| *other != host)
                .map(|other| {
                    let (ip, mac) = (self.ip(other), mac(0, other));
                    format!("neigh replace {ip} lladdr {mac} dev eth0 nud permanent\n")
                })
                .collect();
            let mut child = Command::new("ip")
                .args(["-n", &self.namespace(host), "-batch", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("ip runs");
            let mut input = child.stdin.take().expect("piped above");
            input.write_all(batch.as_bytes()).expect("ip reads");
            drop(input);
            let status = child.wait().expect("ip ends");
            assert!(status.success(), "ip -batch: {status}");
        }
    }

    /// Drops packets of more than `bytes` to and from a host without telling their sender, as a path with a small MTU
    /// does where ICMP is filtered. The MTU of the hosts' interfaces stays.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn set_silent_path_mtu(&self, host: usize, bytes: u32) {
        for sender in 0..self.hosts() {
            // Otherwise the kernel passes several segments on as one large packet, which the switch's port lets through.
            let one_segment = ["link", "set", "eth0", "gso_max_segs", "1"];
            ip(&[&["-n", &self.namespace(sender)][..], &one_segment].concat());
        }
        let port = format!("p0-{host}");
        ip(&[
            "-n",
            &self.switch(),
            "link",
            "set",
            &port,
            "mtu",
            &bytes.to_string(),
        ]);
    }

    /// Limits the rate of a host's first interface in both directions, in the syntax of `tc`: `10mbit`. `None` lifts
    /// the limit.
    pub fn set_rate_limit(&self, host: usize, rate: Option<&str>) {
        let (switch, namespace) = (self.switch(), self.namespace(host));
        let port = format!("p0-{host}");
        for (namespace, interface) in [(namespace.as_str(), "eth0"), (switch.as_str(), port.as_str())] {
            let on = ["-n", namespace, "qdisc"];
            match rate {
                Some(rate) => {
                    let shape = ["tbf", "rate", rate, "burst", "64k", "latency", "100ms"];
                    run_or_panic(
                        "tc",
                        &[&on[..], &["replace", "dev", interface, "root"], &shape].concat(),
                    );
                }
                None => run_or_panic("tc", &[&on[..], &["del", "dev", interface, "root"]].concat()),
            }
        }
    }

    /// Routes the traffic of two hosts through a third one, over one queue of the length `queue` at `rate`, as over
    /// an access point. A host that shapes its own interface gets backpressure from its kernel; a queue elsewhere on
    /// the path gives none.
    ///
    /// # Panics
    /// If `ip` or `tc` fails.
    pub fn route_through_bottleneck(&self, ends: [usize; 2], router: usize, rate: &str, queue: &str) {
        let via = self.ip(router).to_string();
        let quiet = "for f in /proc/sys/net/ipv4/conf/*/*_redirects; do echo 0 > $f; done; \
                     echo 1 > /proc/sys/net/ipv4/ip_forward";
        for host in [ends[0], ends[1], router] {
            let done = self.run(host, "sh", &["-c", quiet]);
            assert!(done.status.success(), "{done:?}");
        }
        for (host, other) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let to = format!("{}/32", self.ip(other));
            ip(&["-n", &self.namespace(host), "route", "replace", &to, "via", &via]);
        }
        let on = [
            "-n",
            &self.namespace(router),
            "qdisc",
            "replace",
            "dev",
            "eth0",
            "root",
        ];
        let shape = ["tbf", "rate", rate, "burst", "16k", "latency", queue];
        run_or_panic("tc", &[&on[..], &shape].concat());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let all = (0..self.hosts()).map(|host| self.namespace(host));
        for namespace in all.chain([self.switch()]) {
            namespaces::delete(&namespace);
        }
        if std::thread::panicking() {
            self.logs.disable_cleanup(true);
            let text = format!("logs are kept in {}\n", self.logs().display());
            let _written = std::io::stderr().write_all(text.as_bytes());
        }
    }
}

/// A host's interface in a network.
fn interface(network: usize) -> String {
    format!("eth{network}")
}

/// 10.77.0.1 is host 0's in the first network, 10.78.0.1 in the second.
fn address(network: usize, host: usize) -> Ipv4Addr {
    let (network, host) = (u8::try_from(77 + network), u8::try_from(host + 1));
    Ipv4Addr::new(
        10,
        network.expect("fewer than 178 networks"),
        0,
        host.expect("fewer than 255 hosts"),
    )
}

fn mac(network: usize, host: usize) -> String {
    let [_, network, _, host] = address(network, host).octets();
    format!("02:00:00:00:{network:02x}:{host:02x}")
}

fn try_ip(args: &[&str]) -> Result<(), SkipReason> {
    try_run("ip", args)
}

fn ip(args: &[&str]) {
    run_or_panic("ip", args);
}

fn run_or_panic(program: &str, args: &[&str]) {
    try_run(program, args).unwrap_or_else(|why| panic!("{why}"));
}

fn try_run(program: &str, args: &[&str]) -> Result<(), SkipReason> {
    let said = |what: &str| SkipReason(format!("{program} {}: {what}", args.join(" ")));
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| said(&e.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(said(String::from_utf8_lossy(&output.stderr).trim()))
    }
}
