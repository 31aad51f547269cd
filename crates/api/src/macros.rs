//! The macros that turn a plain struct into a Kubernetes kind or a closed set of words into an enum.
//!
//! They are macros and not derives of `kube`, because our objects must write `apiVersion` and `kind`
//! themselves (server-side apply needs both) without carrying them as fields.

/// Implements `kube_core::Resource` and `Serialize` for a kind. Fields marked `optional` are left
/// out of the JSON when they are `None`.
macro_rules! kind {
    ($ty:ident, $group:expr, $plural:literal, $scope:ident $(, $mode:ident $field:ident)* $(,)?) => {
        impl kube_core::Resource for $ty {
            type DynamicType = ();
            type Scope = k8s_openapi::$scope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                stringify!($ty).into()
            }
            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }
            fn version((): &()) -> std::borrow::Cow<'_, str> {
                $crate::names::VERSION.into()
            }
            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &$crate::meta::ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut $crate::meta::ObjectMeta {
                &mut self.metadata
            }
        }

        impl serde::Serialize for $ty {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap as _;
                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry("apiVersion", &format!("{}/{}", $group, $crate::names::VERSION))?;
                map.serialize_entry("kind", stringify!($ty))?;
                map.serialize_entry("metadata", &self.metadata)?;
                $($crate::macros::entry!(map, self, $mode $field);)*
                map.end()
            }
        }
    };
}

macro_rules! entry {
    ($map:ident, $self:ident, required $field:ident) => {
        $map.serialize_entry(
            $crate::macros::camel(stringify!($field)).as_str(),
            &$self.$field,
        )?;
    };
    ($map:ident, $self:ident, optional $field:ident) => {
        if let Some(value) = &$self.$field {
            $map.serialize_entry($crate::macros::camel(stringify!($field)).as_str(), value)?;
        }
    };
}

/// A closed set of words. The first one is the default.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $first:ident $(, $word:ident)* $(,)? }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord,
            serde::Serialize, serde::Deserialize, schemars::JsonSchema,
        )]
        pub enum $name {
            #[default]
            $first,
            $($word,)*
        }

        impl $name {
            /// Every word of the set, in declaration order.
            pub const ALL: &'static [Self] = &[Self::$first $(, Self::$word)*];

            /// The word as it is written in JSON.
            pub const fn as_str(self) -> &'static str {
                match self {
                    Self::$first => stringify!($first),
                    $(Self::$word => stringify!($word),)*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// `snake_case` to `camelCase`, the rule of the JSON names.
pub(crate) fn camel(snake: &str) -> String {
    let mut out = String::with_capacity(snake.len());
    let mut upper = false;
    for c in snake.chars() {
        match (c, upper) {
            ('_', _) => upper = true,
            (c, true) => {
                out.push(c.to_ascii_uppercase());
                upper = false;
            }
            (c, false) => out.push(c),
        }
    }
    out
}

pub(crate) use {entry, kind, words};
