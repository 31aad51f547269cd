//! Who asks, and whether he may: client certificates, tokens, RBAC, and the reviews that tell a client about both.

pub mod bootstrap_token;
pub mod certificate;
pub mod node;
pub mod rbac;
pub mod reviews;
pub mod token;

/// Everybody who has shown who he is belongs to this group.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Members may do everything.
pub const MASTERS: &str = "system:masters";

/// An authenticated user.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

impl User {
    pub fn new(name: impl Into<String>, groups: Vec<String>) -> User {
        let mut groups = groups;
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        User {
            name: name.into(),
            groups,
        }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|member| member == group)
    }

    /// The server itself: bootstrap, collectors, namespace termination.
    pub fn server() -> User {
        User::new("system:apiserver", vec![MASTERS.to_owned()])
    }
}

/// What somebody wants to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Action<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// Set for everything that is no resource.
    pub path: &'a str,
}

impl Action<'_> {
    /// `networks` or `networks/status`.
    pub fn full_resource(&self) -> String {
        match self.subresource {
            "" => self.resource.to_owned(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }

    /// The words of a refusal.
    pub fn refusal(&self, user: &User) -> String {
        if !self.path.is_empty() {
            return format!(
                "User \"{}\" cannot {} path \"{}\"",
                user.name, self.verb, self.path
            );
        }
        let place = match self.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace \"{namespace}\""),
        };
        format!(
            "User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
            user.name,
            self.verb,
            self.full_resource(),
            self.group
        )
    }
}
