//! Devices of this node: which exist, what a claim calls them, what dpservice calls them, what status shows.
//!
//! Claims hold the text of a device: a PCI address (`dddd:bb:dd.f`) or, in TAP mode, the name of the TAP. Where the
//! devices are virtual functions they are found in sysfs; only reading that tree is IO, the naming rules are pure.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::model::DeviceStatus;
use crate::plan::nic::Device;

/// Virtual functions assumed when sysfs shows none, and the default number of TAPs: what dpservice can serve.
pub const DEVICES_MAX: u32 = 126;
/// Most entries read from one sysfs directory.
const SYSFS_ENTRIES_MAX: usize = 4096;
/// Distance from a physical function to its first virtual one, where sysfs does not say.
const OFFSET_DEFAULT: u32 = 3;
/// PCI vendor and class of the NICs that dpservice drives: NVIDIA/Mellanox, network controller.
const VENDOR: &str = "0x15b3";
const CLASS_PREFIX: &str = "0x02";
/// The host of a DPU sees the card on this bus, whatever the DPU itself sees.
const DPU_HOST_BUS: &str = "06";
/// Parts of node names that mark a DPU.
const DPU_MARKS: [&str; 2] = ["-bluefield", "-blfd"];

/// A PCI address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    pub domain: u32,
    pub bus: u8,
    /// 0 to 31.
    pub device: u8,
    /// 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// Device and function as one number, the way virtual functions are counted.
    fn index(self) -> u32 {
        u32::from(self.device) * 8 + u32::from(self.function)
    }

    /// The address whose device and function number is `index`, on the same bus.
    fn with_index(self, index: u32) -> Option<Self> {
        let device = u8::try_from(index / 8).ok().filter(|device| *device < 32)?;
        let function = u8::try_from(index % 8).ok()?;
        Some(Self {
            device,
            function,
            ..self
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// The text is not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a PCI address such as 0000:03:00.2")]
pub struct PciAddressError(String);

impl FromStr for PciAddress {
    type Err = PciAddressError;

    /// `[domain:]bus:device.function`, hexadecimal; the domain is 0 if left out.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let mut parts = rest.rsplitn(3, ':');
            let device = parts.next().and_then(|part| hex(part, 2))?;
            let bus = parts.next().and_then(|part| hex(part, 2))?;
            let domain = match parts.next() {
                None | Some("") => 0,
                Some(part) if part.len() <= 8 => u32::from_str_radix(part, 16).ok()?,
                Some(_) => return None,
            };
            let function = hex(function, 1).filter(|function| *function < 8)?;
            Some(Self {
                domain,
                bus,
                device: Some(device).filter(|device| *device < 32)?,
                function,
            })
        };
        parse().ok_or_else(|| PciAddressError(text.to_owned()))
    }
}

fn hex(text: &str, digits: usize) -> Option<u8> {
    (text.len() == digits)
        .then(|| u8::from_str_radix(text, 16).ok())
        .flatten()
}

/// The TAPs `dtapvf_0` to `dtapvf_<count-1>`; dpservice calls the first two of its own devices uplinks, hence the shift.
pub fn taps(count: u32) -> Vec<(String, Device)> {
    let tap = |k: u32| {
        let name = format!("dtapvf_{k}");
        let device = Device {
            name: format!("net_tap{}", k + 2),
            status: DeviceStatus::Tap { name: name.clone() },
        };
        (name, device)
    };
    (0..count).map(tap).collect()
}

/// How virtual functions are named on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciNaming {
    /// dpservice was started with both uplinks on one embedded switch.
    pub multiport_eswitch: bool,
    /// This is a DPU: the machine's host sees another bus number.
    pub dpu: bool,
}

impl PciNaming {
    /// The naming for a node called `node`.
    pub fn new(node: &str, multiport_eswitch: bool) -> Self {
        Self {
            multiport_eswitch,
            dpu: DPU_MARKS.iter().any(|mark| node.contains(mark)),
        }
    }
}

/// A virtual function and where its numbering starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    pub address: PciAddress,
    /// The physical function, if sysfs shows it.
    pub parent: Option<Parent>,
}

/// A physical function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    pub address: PciAddress,
    /// `sriov_offset`: distance to the first virtual function.
    pub offset: u32,
}

/// Claim text and device of a virtual function.
pub fn pci(function: Function, naming: &PciNaming) -> (String, Device) {
    let Function { address, parent } = function;
    let (base, offset) = match parent {
        Some(Parent { address, offset }) => (address, offset),
        None => (
            PciAddress {
                device: 0,
                function: 0,
                ..address
            },
            OFFSET_DEFAULT,
        ),
    };
    let number = address.index().saturating_sub(offset);
    let kind = if naming.multiport_eswitch {
        "c0pf0vf"
    } else {
        "vf"
    };
    let PciAddress {
        domain,
        bus,
        device,
        ..
    } = base;
    let name = format!("{domain:04x}:{bus:02x}:{device:02x}.0_representor_{kind}{number}");
    let status = DeviceStatus::Pci {
        domain: format!("{:04x}", address.domain),
        bus: if naming.dpu {
            DPU_HOST_BUS.to_owned()
        } else {
            format!("{:02x}", address.bus)
        },
        slot: format!("{:02x}", address.device),
        function: format!("{:x}", address.function),
    };
    (address.to_string(), Device { name, status })
}

/// The virtual functions that sysfs (`<root>/bus/pci/devices`) shows, or, if none, those that follow `base`.
pub fn discover(root: &Path, base: PciAddress) -> Vec<Function> {
    let found = scan(&root.join("bus/pci/devices"));
    if !found.is_empty() {
        return found;
    }
    let first = base.index() + OFFSET_DEFAULT;
    let addresses = (first..first + DEVICES_MAX).filter_map(|index| base.with_index(index));
    addresses
        .map(|address| Function {
            address,
            parent: None,
        })
        .collect()
}

fn scan(devices: &Path) -> Vec<Function> {
    let Ok(entries) = std::fs::read_dir(devices) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.take(SYSFS_ENTRIES_MAX).flatten() {
        let Some(address) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        found.extend(functions_of(&entry.path(), address).unwrap_or_default());
    }
    found.sort_by_key(|function| function.address);
    found
}

/// The virtual functions of the device at `path`; `None` if it is not a physical function that dpservice drives.
fn functions_of(path: &Path, address: PciAddress) -> Option<Vec<Function>> {
    let read = |name: &str| std::fs::read_to_string(path.join(name)).ok();
    let number = |name: &str| read(name).and_then(|text| parse_number(text.trim()));
    if read("vendor")?.trim() != VENDOR || !read("class")?.trim().starts_with(CLASS_PREFIX) {
        return None;
    }
    if number("sriov_numvfs")? == 0 {
        return None;
    }
    let parent = Some(Parent {
        address,
        offset: number("sriov_offset")?,
    });
    let mut functions = Vec::new();
    for entry in std::fs::read_dir(path)
        .ok()?
        .take(SYSFS_ENTRIES_MAX)
        .flatten()
    {
        let name = entry.file_name();
        let is_function = name.to_str().and_then(|name| name.strip_prefix("virtfn"));
        if !is_function
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
        {
            continue;
        }
        let target = std::fs::read_link(entry.path()).ok();
        let target = target
            .as_deref()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        if let Some(address) = target.and_then(|name| name.parse().ok()) {
            functions.push(Function { address, parent });
        }
    }
    Some(functions)
}

/// Decimal, or hexadecimal with `0x`.
fn parse_number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
