//! One row per served kind. Everything the server does per kind comes from its row.

mod apinet_services;
mod columns;
mod rows;
mod services;

use std::sync::LazyLock;

use serde_json::Value;

use crate::field::{FieldError, sorted};
use crate::schema::Schema;
use crate::validate::{self, name};

/// Whether objects live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// Once per region.
    Cluster,
}

/// Which names an object of the kind may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// DNS label, at most 63 characters.
    Label,
    /// DNS subdomain, at most 253 characters.
    Subdomain,
    /// Any single path segment (RBAC).
    PathSegment,
    /// The canonical text of an IP address.
    IpAddress,
    /// A VNI in canonical decimal.
    Vni,
}

impl NameRule {
    /// What is wrong with the name; `None` when nothing is.
    pub fn problem(self, text: &str) -> Option<String> {
        match self {
            Self::Label => name::dns_label(text),
            Self::Subdomain => name::dns_subdomain(text),
            Self::PathSegment => name::path_segment(text),
            Self::IpAddress => match text.parse::<crate::meta::Ip>() {
                Ok(ip) if ip.to_string() == text => None,
                Ok(ip) => Some(format!("must be the canonical form {ip}")),
                Err(_) => Some("must be a valid IP address".into()),
            },
            Self::Vni => validate::apinet::vni_problem(text),
        }
    }

    /// What is wrong with a `generateName` prefix, which may end in `-` or `.`.
    pub fn prefix_problem(self, text: &str) -> Option<String> {
        match self {
            Self::Label | Self::Subdomain => {
                self.problem(text.strip_suffix(['-', '.']).unwrap_or(text))
            }
            Self::PathSegment => self.problem(text),
            Self::IpAddress | Self::Vni => {
                Some("this kind is named by its value, not by a generated name".into())
            }
        }
    }
}

/// What the server reserves inside the write of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Nothing.
    None,
    /// OpenKCM-net Network: `spec.id`, locked by a NetworkID.
    NetworkVni,
    /// OpenKCM-net IP: `spec.ip`, locked by an IPAddress.
    IpAddress,
    /// OpenKCM-net NetworkInterface, NATGateway, LoadBalancer of type Public: an IP object for every entry of `spec.publicIPs` or
    /// `spec.ips`.
    PublicIps,
}

/// When `metadata.generation` grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The kind has no generation.
    Never,
    /// 1 at creation, one more whenever anything but metadata and status changes.
    SpecChange,
}

/// JSON type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// Text.
    String,
    /// Whole number.
    Integer,
    /// Point in time, shown as age.
    Date,
}

impl ColumnType {
    /// Word used in tables and CRDs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Date => "date",
        }
    }
}

/// Where the content of a column comes from.
#[derive(Clone, Copy, Debug)]
pub enum Cell {
    /// The value at a dotted path; lists are joined with `,`, nothing there gives the placeholder.
    Path {
        /// Dotted path, `spec.networkRef.name`.
        path: &'static str,
        /// Shown when there is nothing.
        none: &'static str,
    },
    /// Computed from the object.
    Text(fn(&Value) -> String),
    /// Computed from the object as a number.
    Int(fn(&Value) -> i64),
    /// Time at a dotted path; the server shows the time since then.
    Since(&'static str),
    /// Time computed from the object, RFC 3339; the server shows the time since then.
    SinceText(fn(&Value) -> Option<String>),
}

/// One printer column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// JSON type.
    pub kind: ColumnType,
    /// `name` for the column that names the object, else empty.
    pub format: &'static str,
    /// What the column says.
    pub description: &'static str,
    /// 0 is always shown, others only with `-o wide`.
    pub priority: i32,
    /// Content.
    pub cell: Cell,
}

impl Column {
    /// Content of the cell. Times are returned as RFC 3339 text, `Null` when there is none; the server
    /// knows the clock and turns them into an age.
    pub fn content(&self, object: &Value) -> Value {
        match self.cell {
            Cell::Path { path, none } => columns::show(columns::at(object, path), none),
            Cell::Text(text) => text(object).into(),
            Cell::Int(number) => number(object).into(),
            Cell::Since(path) => columns::at(object, path).cloned().unwrap_or_default(),
            Cell::SinceText(time) => time(object).map_or(Value::Null, Value::String),
        }
    }

    /// True when [`Column::content`] is a point in time.
    pub fn is_age(&self) -> bool {
        matches!(self.cell, Cell::Since(_) | Cell::SinceText(_))
    }
}

/// Rule over a new object.
pub type CreateRule = fn(&Value) -> Vec<FieldError>;
/// Rule over the new and the old object.
pub type UpdateRule = fn(&Value, &Value) -> Vec<FieldError>;

/// Everything the server knows about a kind.
#[derive(Clone, Copy, Debug)]
pub struct KindInfo {
    /// API group; empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Kind, `NetworkInterface`.
    pub kind: &'static str,
    /// Kind of the list, `NetworkInterfaceList`.
    pub list_kind: &'static str,
    /// Resource, `networkinterfaces`.
    pub plural: &'static str,
    /// Singular, `networkinterface`.
    pub singular: &'static str,
    /// Short names.
    pub short_names: &'static [&'static str],
    /// Categories.
    pub categories: &'static [&'static str],
    /// Namespaced or not.
    pub scope: Scope,
    /// Served verbs.
    pub verbs: &'static [&'static str],
    /// Subresources: `status`, `exec` …
    pub subresources: &'static [&'static str],
    /// Printer columns, the name first.
    pub columns: &'static [Column],
    /// Fields for field selectors besides `metadata.name` and `metadata.namespace`, as dotted paths.
    pub selectable: &'static [&'static str],
    /// Allowed names.
    pub name_rule: NameRule,
    /// Generation policy.
    pub generation: Generation,
    /// True when an update must carry a resourceVersion.
    pub locked_update: bool,
    /// True for kinds of Kubernetes itself: strategic merge patch is served for them only.
    pub builtin: bool,
    /// What is reserved inside the write.
    pub allocation: Allocation,
    /// Schema.
    pub schema: fn() -> &'static Schema,
    /// Defaults over several fields; run after [`Schema::apply_defaults`].
    pub default: fn(&mut Value),
    /// Rules over a new object, beside those of the schema.
    pub validate_create: CreateRule,
    /// Rules over a changed object; they include those over a new one.
    pub validate_update: UpdateRule,
    /// Rules over a changed status; the new object holds the old spec.
    pub validate_status: UpdateRule,
}

/// Verbs of a stored kind.
pub const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

impl KindInfo {
    /// `group/version`, or the version alone for core.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// True when objects live in a namespace.
    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// True when the kind has `status` as a subresource.
    pub fn has_status(&self) -> bool {
        self.subresources.contains(&"status")
    }

    /// Brings an object into its stored form: nulls dropped, unknown fields pruned, defaults filled in.
    pub fn normalize(&self, object: &mut Value) {
        let schema = (self.schema)();
        schema.drop_nulls(object);
        schema.prune(object);
        schema.apply_defaults(object);
        (self.default)(object);
    }

    /// All errors of a new object: metadata, structure and rules.
    pub fn check_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = validate::object_meta(object, self.name_rule, self.is_namespaced());
        errors.extend((self.schema)().validate(object));
        errors.extend((self.validate_create)(object));
        sorted(errors)
    }

    /// All errors of a changed object.
    pub fn check_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validate::object_meta_update(new, old);
        errors.extend((self.schema)().validate(new));
        errors.extend((self.validate_update)(new, old));
        sorted(errors)
    }

    /// All errors of a changed status; `new` holds the old spec.
    pub fn check_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validate::object_meta_update(new, old);
        let structure = (self.schema)().validate(new);
        errors.extend(
            structure
                .into_iter()
                .filter(|error| error.path.starts_with("status")),
        );
        errors.extend((self.validate_status)(new, old));
        sorted(errors)
    }
}

/// Every served kind, ours first.
pub fn kinds() -> &'static [KindInfo] {
    static KINDS: LazyLock<Vec<KindInfo>> = LazyLock::new(|| {
        rows::OURS
            .iter()
            .chain(services::SERVICES)
            .chain(apinet_services::ROWS)
            .chain(crate::builtin::ROWS)
            .copied()
            .collect()
    });
    &KINDS
}

/// The kind of a resource. The group may be in any case.
pub fn by_plural(group: &str, plural: &str) -> Option<&'static KindInfo> {
    kinds()
        .iter()
        .find(|row| row.group.eq_ignore_ascii_case(group) && row.plural == plural)
}

/// The kind by its name. The group may be in any case.
pub fn by_kind(group: &str, kind: &str) -> Option<&'static KindInfo> {
    kinds()
        .iter()
        .find(|row| row.group.eq_ignore_ascii_case(group) && row.kind == kind)
}

/// A function that builds the schema of a kind once, with an optional patch.
macro_rules! schema {
    ($ty:ty) => {
        $crate::table::schema!($ty, |_| {})
    };
    ($ty:ty, $patch:expr) => {{
        fn get() -> &'static $crate::schema::Schema {
            static SCHEMA: std::sync::LazyLock<$crate::schema::Schema> =
                std::sync::LazyLock::new(|| {
                    let mut schema = $crate::schema::kind_schema::<$ty>();
                    let patch: fn(&mut $crate::schema::Schema) = $patch;
                    patch(&mut schema);
                    schema
                });
            &SCHEMA
        }
        get
    }};
}
pub(crate) use schema;

pub(crate) use columns::{age, int, name_column, path, since, text, wide};
