//! The work queue: once per key, exclusively, with back-off by error class. Time is paused.

use std::{sync::Arc, time::Duration};

use controller::{
    Class, Key,
    queue::{
        BACKOFF_MIN, CONFLICT_BACKOFF_MAX, Outcome, PERMANENT_BACKOFF_MAX, Queue,
        RETRY_BACKOFF_MAX, backoff,
    },
};
use tokio::time::Instant;

fn key(name: &str) -> Key {
    Key::cluster(name)
}

/// The next key, or `None` if none becomes ready within an hour.
async fn next(queue: &Queue) -> Option<Key> {
    tokio::time::timeout(Duration::from_secs(3600), queue.next())
        .await
        .ok()
        .flatten()
}

#[tokio::test(start_paused = true)]
async fn a_key_added_often_is_worked_on_once() {
    let queue = Queue::default();
    for _ in 0..3 {
        queue.add(key("a"));
    }
    assert_eq!(next(&queue).await, Some(key("a")));
    queue.done(key("a"), Outcome::Done);
    assert_eq!(next(&queue).await, None);
    assert!(queue.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_key_in_work_is_not_given_to_a_second_worker_but_comes_again() {
    let queue = Arc::new(Queue::default());
    queue.add(key("a"));
    assert_eq!(next(&queue).await, Some(key("a")));
    queue.add(key("a"));
    assert_eq!(next(&queue).await, None);
    queue.done(key("a"), Outcome::Done);
    assert_eq!(next(&queue).await, Some(key("a")));
}

/// Fails the key that is in work and returns how long it stays away.
async fn wait_after_failure(queue: &Queue, class: Class) -> Duration {
    let failed_at = Instant::now();
    queue.done(key("a"), Outcome::Failed(class));
    assert_eq!(next(queue).await, Some(key("a")));
    failed_at.elapsed()
}

#[tokio::test(start_paused = true)]
async fn failures_wait_twice_as_long_each_time_and_success_forgets_them() {
    let queue = Queue::default();
    queue.add(key("a"));
    assert_eq!(next(&queue).await, Some(key("a")));
    for doublings in 0..4 {
        let waited = wait_after_failure(&queue, Class::Permanent).await;
        let expected = BACKOFF_MIN * (1 << doublings);
        assert!(
            waited >= expected && waited <= expected + Duration::from_millis(1),
            "{waited:?}"
        );
    }
    queue.done(key("a"), Outcome::Done);
    queue.add(key("a"));
    assert_eq!(next(&queue).await, Some(key("a")));
    let waited = wait_after_failure(&queue, Class::Permanent).await;
    assert!(
        waited <= BACKOFF_MIN + Duration::from_millis(1),
        "{waited:?}"
    );
}

#[test]
fn back_off_is_bounded_by_class() {
    assert_eq!(backoff(Class::Permanent, 99), PERMANENT_BACKOFF_MAX);
    assert_eq!(backoff(Class::Bug, 99), PERMANENT_BACKOFF_MAX);
    assert_eq!(backoff(Class::Retry, 99), RETRY_BACKOFF_MAX);
    assert_eq!(backoff(Class::Conflict, 99), CONFLICT_BACKOFF_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_change_ends_the_wait_of_a_failed_key() {
    let queue = Queue::default();
    queue.add(key("a"));
    for _ in 0..15 {
        assert_eq!(next(&queue).await, Some(key("a")));
        queue.done(key("a"), Outcome::Failed(Class::Permanent));
    }
    let before = Instant::now();
    queue.add(key("a"));
    assert_eq!(next(&queue).await, Some(key("a")));
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_back_ends_all_waits_for_it() {
    let queue = Queue::default();
    for name in ["a", "b"] {
        queue.add(key(name));
        assert_eq!(next(&queue).await, Some(key(name)));
    }
    queue.done(key("a"), Outcome::Failed(Class::Retry));
    queue.done(key("b"), Outcome::Failed(Class::Permanent));
    let before = Instant::now();
    queue.retry_now();
    assert_eq!(next(&queue).await, Some(key("a")));
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(next(&queue).await, Some(key("b")));
    assert!(before.elapsed() > Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_wish_to_come_again_is_kept_to_the_time() {
    let queue = Queue::default();
    queue.add(key("a"));
    assert_eq!(next(&queue).await, Some(key("a")));
    let before = Instant::now();
    queue.done(key("a"), Outcome::Again(Duration::from_secs(5)));
    assert_eq!(next(&queue).await, Some(key("a")));
    let waited = before.elapsed();
    assert!(
        waited >= Duration::from_secs(5) && waited < Duration::from_millis(5010),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_closed_queue_releases_its_workers() {
    let queue = Arc::new(Queue::default());
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let queue = queue.clone();
            async move { queue.next().await }
        })
        .collect();
    let close = async {
        tokio::task::yield_now().await;
        queue.close();
    };
    let (released, ()) = tokio::join!(futures::future::join_all(workers), close);
    assert_eq!(released, vec![None, None, None]);
}
