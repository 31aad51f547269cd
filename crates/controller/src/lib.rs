//! The one controller runner over kube: watches, queues, plans, events, leader election.
