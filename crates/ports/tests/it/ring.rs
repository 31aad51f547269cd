//! The queue between packet threads.

use ports::ring::ring;

#[test]
fn items_come_out_in_order_and_buffers_go_back() {
    let (mut sender, mut receiver) = ring::<Vec<u8>>(2);
    let mut item = vec![1];
    assert!(receiver.is_empty());
    assert!(sender.push(&mut item));
    assert!(item.is_empty(), "what was in the slot comes back");
    item = vec![2];
    assert!(sender.push(&mut item));
    item = vec![3];
    assert!(!sender.push(&mut item), "two places are taken");
    assert_eq!(item, [3], "a refused item stays");
    let mut spare = vec![9];
    assert!(receiver.pop(&mut spare));
    assert_eq!(spare, [1]);
    assert!(sender.push(&mut item));
    assert_eq!(item, [9], "the receiver's spare buffer travels back");
    assert!(receiver.pop(&mut spare));
    assert_eq!(spare, [2]);
    assert!(receiver.pop(&mut spare));
    assert_eq!(spare, [3]);
    assert!(!receiver.pop(&mut spare));
    assert_eq!(spare, [3], "unchanged");
}

#[test]
fn two_threads_lose_nothing() {
    const COUNT: u64 = 200_000;
    let (mut sender, mut receiver) = ring::<u64>(64);
    let sending = std::thread::spawn(move || {
        for number in 1..=COUNT {
            let mut item = number;
            while !sender.push(&mut item) {
                std::thread::yield_now();
            }
        }
    });
    let mut expected = 1;
    while expected <= COUNT {
        let mut item = 0;
        if receiver.pop(&mut item) {
            assert_eq!(item, expected);
            expected += 1;
        } else {
            std::thread::yield_now();
        }
    }
    sending.join().expect("sender");
}
