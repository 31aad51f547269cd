//! The selection of a list or watch: namespace, name, label selector, field selector.

use crate::cache::Entry;
use crate::kinds::Kind;
use crate::query::Query;
use crate::selector::{FieldSelector, LabelSelector};
use crate::status::{Failure, Outcome};
use std::sync::Arc;

/// Which objects of a kind are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this namespace, for cursors over the whole kind.
    namespace: Option<String>,
    name: Option<String>,
    labels: Option<LabelSelector>,
    /// Conditions on fields other than name and namespace: index of the field, value, whether equal.
    fields: Vec<(usize, String, bool)>,
    /// JSON pointers of the kind's fields.
    pointers: Arc<[String]>,
    names_excluded: Vec<String>,
    namespaces_excluded: Vec<String>,
}

impl Filter {
    /// The filter of a request. Unknown fields are refused, because ignoring them would select too much.
    pub fn parse(kind: &Kind, namespace: Option<&str>, query: &Query) -> Outcome<Filter> {
        let mut filter = Filter {
            namespace: namespace.map(str::to_owned),
            pointers: Arc::clone(&kind.pointers),
            ..Filter::default()
        };
        if let Some(text) = query.text("labelSelector") {
            let selector = LabelSelector::parse(text).map_err(|error| {
                Failure::bad_request(format!("unable to parse requirement: {error}"))
            })?;
            filter.labels = Some(selector);
        }
        if let Some(text) = query.text("fieldSelector") {
            let selector = FieldSelector::parse(text).map_err(|error| {
                Failure::bad_request(format!("unable to parse field selector: {error}"))
            })?;
            for term in &selector.0 {
                filter.add_field(kind, &term.field, &term.value, term.equal)?;
            }
        }
        Ok(filter)
    }

    fn add_field(&mut self, kind: &Kind, field: &str, value: &str, equal: bool) -> Outcome<()> {
        match (field, equal) {
            ("metadata.name", true) => match &self.name {
                Some(name) if name != value => self.names_excluded.push(name.clone()),
                _ => self.name = Some(value.to_owned()),
            },
            ("metadata.name", false) => self.names_excluded.push(value.to_owned()),
            ("metadata.namespace", false) => self.namespaces_excluded.push(value.to_owned()),
            ("metadata.namespace", true) => match &self.namespace {
                Some(namespace) if namespace != value => {
                    self.namespaces_excluded.push(namespace.clone())
                }
                _ => self.namespace = Some(value.to_owned()),
            },
            (field, equal) => {
                let Some(index) = kind.selectable(field) else {
                    return Err(Failure::bad_request(format!(
                        "Unable to find \"{}\" that match label selector \"\", field selector \"{field}={value}\": field label not \
                         supported: {field}",
                        kind.api_version()
                    )));
                };
                self.fields.push((index, value.to_owned(), equal));
            }
        }
        Ok(())
    }

    /// The one object this filter can select at most.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether the filter selects a whole kind or namespace.
    pub fn is_everything(&self) -> bool {
        self.name.is_none()
            && self.labels.is_none()
            && self.fields.is_empty()
            && self.names_excluded.is_empty()
            && self.namespaces_excluded.is_empty()
    }

    pub fn matches(&self, entry: &Entry) -> bool {
        let (namespace, name) = (entry.namespace(), entry.name());
        self.namespace
            .as_deref()
            .is_none_or(|wanted| wanted == namespace)
            && self.name.as_deref().is_none_or(|wanted| wanted == name)
            && !self.names_excluded.iter().any(|excluded| excluded == name)
            && !self
                .namespaces_excluded
                .iter()
                .any(|excluded| excluded == namespace)
            && self
                .labels
                .as_ref()
                .is_none_or(|selector| selector.matches(|key| entry.label(key)))
            && self.fields.iter().all(|(index, wanted, equal)| {
                (entry.field(&self.pointers, *index) == wanted) == *equal
            })
    }
}
