/* What Rust sees of DPDK: the inline functions made real, and the large structures made flat. */
#ifndef OKM_DPDK_SHIM_H
#define OKM_DPDK_SHIM_H

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_vhost.h>
#include <rte_ethdev.h>
#include <rte_flow.h>
#include <rte_lcore.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_telemetry.h>
#include <rte_vhost.h>

#define OKM_NAME_LEN 64

struct okm_info {
	char name[OKM_NAME_LEN];
	char driver[OKM_NAME_LEN];
	uint8_t mac[6];
	uint16_t mtu;
	uint32_t if_index;
	uint16_t queues_max;
	uint16_t mtu_max;
	uint64_t tx_offloads;
	uint64_t rx_offloads;
	int socket;
};

struct okm_config {
	uint16_t queues;
	uint16_t rx_descriptors;
	uint16_t tx_descriptors;
	uint64_t tx_offloads;
	uint64_t rx_offloads;
	/* In: ask for receive interrupts. Out: whether the driver gave them. */
	uint8_t interrupts;
	struct rte_mempool *pool;
};

struct okm_stats {
	uint64_t rx_packets;
	uint64_t rx_bytes;
	uint64_t rx_missed;
	uint64_t rx_errors;
	uint64_t rx_no_buffer;
	uint64_t tx_packets;
	uint64_t tx_bytes;
	uint64_t tx_errors;
};

struct okm_heap {
	uint64_t size;
	uint64_t free_size;
	uint64_t greatest_free_size;
	uint64_t allocated_size;
	uint64_t allocations;
	uint64_t free_pieces;
};

int okm_errno(void);
/* The heap of the memory node at `place` in DPDK's list; negative: there is none. */
int okm_heap(unsigned int place, struct okm_heap *heap);
/* The next port at or after `port`, or -1. */
int okm_next_port(uint16_t port);
int okm_info(uint16_t port, struct okm_info *info);
int okm_configure(uint16_t port, struct okm_config *config);
int okm_start(uint16_t port);
int okm_stats(uint16_t port, struct okm_stats *stats);
/* 1 up, 0 down, negative: error. Does not wait. */
int okm_link(uint16_t port);
/* Name and value of an extended statistic; the number of them if `name` is null. */
int okm_xstat(uint16_t port, unsigned int index, char *name, uint64_t *value);

uint16_t okm_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count);
uint16_t okm_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count);
/* Lets the receive interrupts of a queue make the epoll instance readable, or not any more. */
int okm_rx_interrupt_watch(uint16_t port, uint16_t queue, int epoll, int on);
/* Forgets interrupts that came, and switches the next one on. */
int okm_rx_interrupt_arm(uint16_t port, uint16_t queue, int epoll);

struct rte_mbuf *okm_mbuf_alloc(struct rte_mempool *pool);
void okm_mbuf_free(struct rte_mbuf *packet);

/* One of these on a received packet: its sender may have left something to be done. */
static const uint64_t OKM_LEFT_FLAGS = RTE_MBUF_F_RX_L4_CKSUM_MASK | RTE_MBUF_F_RX_LRO |
				       RTE_MBUF_F_TX_L4_MASK | RTE_MBUF_F_TX_TCP_SEG |
				       RTE_MBUF_F_TX_UDP_SEG;
/* On a packet of ours: TCP whose checksum is to be written, or which is to be cut. */
static const uint64_t OKM_NOTE_FLAG = RTE_MBUF_F_TX_TCP_CKSUM;

enum okm_left {
	OKM_LEFT_NOTHING,
	OKM_LEFT_CHECKSUM,
	OKM_LEFT_SEGMENTS,
	/* What we do not do for anybody. */
	OKM_LEFT_OTHER,
};

/* What the sender of a received packet left to be done, which the packet does not say any more afterwards. */
int okm_mbuf_take_left(struct rte_mbuf *packet, uint16_t *segment_len);
/* Notes what is left to be done, for `okm_mbuf_noted`. */
void okm_mbuf_note(struct rte_mbuf *packet, uint32_t tcp_len, uint16_t segment_len);
void okm_mbuf_noted(const struct rte_mbuf *packet, uint32_t *tcp_len, uint16_t *segment_len);
void okm_mbuf_forget(struct rte_mbuf *packet);
/* Tells the sending driver to do what is noted. */
void okm_mbuf_describe(struct rte_mbuf *packet, uint8_t ip_start, uint16_t tcp_start, uint8_t tcp_header_len, int is_v6);
/* Features of virtio that the guest behind a vhost port has agreed to; zero without guest, and for other ports. */
uint64_t okm_guest_features(uint16_t port);

#define OKM_ITEMS_MAX 8
#define OKM_ACTIONS_MAX 16
#define OKM_HEADER_MAX 64

enum okm_item_kind {
	OKM_ITEM_ETHERNET,
	OKM_ITEM_IPV4,
	OKM_ITEM_IPV6,
	OKM_ITEM_TCP,
	OKM_ITEM_UDP,
	OKM_ITEM_ECHO,
};

/* Numbers in host byte order, addresses as on the wire. */
struct okm_item {
	uint8_t kind;
	/* IPv4, IPv6: what follows; 0: anything. Echo: type. */
	uint8_t protocol;
	/* IPv4, IPv6: exactly this, or -1. */
	int16_t ttl;
	/* Ethernet: type. TCP, UDP: source port. Echo: identifier. */
	uint16_t first;
	/* TCP, UDP: destination port. */
	uint16_t second;
	/* Leading bits of the addresses that count. */
	uint8_t source_bits;
	uint8_t destination_bits;
	/* IPv6: traffic class and flow label are zero. */
	uint8_t unmarked;
	uint8_t source[16];
	uint8_t destination[16];
};

enum okm_action_kind {
	OKM_ACTION_RAW_DECAP,
	OKM_ACTION_RAW_ENCAP,
	OKM_ACTION_SET_MAC_SRC,
	OKM_ACTION_SET_MAC_DST,
	OKM_ACTION_SET_IPV4_SRC,
	OKM_ACTION_SET_IPV4_DST,
	OKM_ACTION_SET_IPV6_SRC,
	OKM_ACTION_SET_IPV6_DST,
	OKM_ACTION_SET_TP_SRC,
	OKM_ACTION_SET_TP_DST,
	OKM_ACTION_SET_TTL,
	OKM_ACTION_DEC_TTL,
	OKM_ACTION_COUNT,
	OKM_ACTION_AGE,
	OKM_ACTION_PORT,
	OKM_ACTION_SOFTWARE,
};

struct okm_action {
	uint8_t kind;
	uint8_t length;
	/* Port, TTL, seconds. */
	uint32_t value;
	/* Address or header. */
	uint8_t bytes[OKM_HEADER_MAX];
};

struct okm_rule {
	uint16_t port;
	uint8_t transfer;
	uint32_t priority;
	uint8_t item_count;
	uint8_t action_count;
	struct okm_item items[OKM_ITEMS_MAX];
	struct okm_action actions[OKM_ACTIONS_MAX];
};

/* Asks the device whether it can, then installs. Writes the rule, or what the driver says (`text` has OKM_NAME_LEN bytes). */
int okm_rule_create(const struct okm_rule *rule, struct rte_flow **created, char *text);
int okm_rule_destroy(uint16_t port, struct rte_flow *rule);
int okm_rule_query(uint16_t port, struct rte_flow *rule, uint64_t *packets, uint64_t *bytes);
int okm_rule_flush(uint16_t port);
/* From now on only packets that a rule names come to us. */
int okm_isolate(uint16_t port);

typedef void (*okm_log_sink)(uint32_t level, const char *text, size_t length);
/* Gives everything that DPDK logs to `sink`, in pieces that are no whole lines. */
int okm_log_to(okm_log_sink sink);

/* Cores beside the main one. */
unsigned int okm_worker_cores(void);
/* Registers the calling thread with DPDK and ties it to the CPUs of the given worker core, if there is one. */
int okm_enter_worker(unsigned int number);
int okm_main_socket(void);

#endif
