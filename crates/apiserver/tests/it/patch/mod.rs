//! Patches: JSON Patch, merge patch, strategic merge patch, server-side apply.

mod apply;
mod apply_laws;
mod documents;

use api::schema::{ListType, MapType, Schema, Type};

/// Builders for schemas of tests.
pub fn text() -> Schema {
    Schema {
        kind: Type::String,
        ..Schema::default()
    }
}

pub fn number() -> Schema {
    Schema {
        kind: Type::Integer,
        ..Schema::default()
    }
}

pub fn structure<const N: usize>(fields: [(&str, Schema); N]) -> Schema {
    let properties = fields
        .map(|(name, schema)| (name.to_owned(), schema))
        .into();
    Schema {
        kind: Type::Object,
        properties,
        ..Schema::default()
    }
}

pub fn map(values: Schema) -> Schema {
    Schema {
        kind: Type::Object,
        additional: Some(Box::new(values)),
        ..Schema::default()
    }
}

pub fn list(list_type: ListType, items: Schema) -> Schema {
    Schema {
        kind: Type::Array,
        list_type,
        items: Some(Box::new(items)),
        ..Schema::default()
    }
}

pub fn keyed(keys: &[&str], items: Schema) -> Schema {
    list(
        ListType::Map(keys.iter().map(|key| (*key).to_owned()).collect()),
        items,
    )
}

/// A kind with every sort of field.
pub fn kind() -> Schema {
    let owner = Schema {
        map_type: MapType::Atomic,
        ..structure([("uid", text()), ("kind", text()), ("name", text())])
    };
    let metadata = structure([
        ("name", text()),
        ("namespace", text()),
        ("uid", text()),
        ("resourceVersion", text()),
        ("generation", number()),
        ("labels", map(text())),
        ("annotations", map(text())),
        ("finalizers", list(ListType::Set, text())),
        ("ownerReferences", keyed(&["uid"], owner)),
    ]);
    let port = structure([
        ("port", number()),
        (
            "protocol",
            Schema {
                default: Some("TCP".into()),
                ..text()
            },
        ),
        ("name", text()),
    ]);
    let ip = structure([("name", text()), ("ip", text()), ("family", text())]);
    let reference = Schema {
        map_type: MapType::Atomic,
        ..structure([("name", text()), ("uid", text())])
    };
    let spec = structure([
        ("replicas", number()),
        ("image", text()),
        ("ips", keyed(&["name"], ip)),
        ("ports", keyed(&["port", "protocol"], port)),
        ("prefixes", list(ListType::Atomic, text())),
        ("ref", reference),
        (
            "inner",
            structure([("a", text()), ("b", text()), ("options", map(text()))]),
        ),
    ]);
    let status = structure([("state", text()), ("count", number())]);
    structure([
        ("apiVersion", text()),
        ("kind", text()),
        ("metadata", metadata),
        ("spec", spec),
        ("status", status),
        ("data", map(text())),
    ])
}
