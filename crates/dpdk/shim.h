/* What Rust sees of DPDK: the inline functions made real, and the large structures made flat. */
#ifndef OKM_DPDK_SHIM_H
#define OKM_DPDK_SHIM_H

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

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

int okm_errno(void);
/* The next port at or after `port`, or -1. */
int okm_next_port(uint16_t port);
int okm_info(uint16_t port, struct okm_info *info);
int okm_configure(uint16_t port, struct okm_config *config);
int okm_stats(uint16_t port, struct okm_stats *stats);
/* 1 up, 0 down, negative: error. Does not wait. */
int okm_link(uint16_t port);
/* Name and value of an extended statistic; the number of them if `name` is null. */
int okm_xstat(uint16_t port, unsigned int index, char *name, uint64_t *value);

uint16_t okm_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count);
uint16_t okm_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count);
/* File descriptor that becomes readable when a packet arrives, or a negative number. */
int okm_rx_interrupt(uint16_t port, uint16_t queue);
int okm_rx_interrupt_arm(uint16_t port, uint16_t queue);

struct rte_mbuf *okm_mbuf_alloc(struct rte_mempool *pool);
void okm_mbuf_free(struct rte_mbuf *packet);

/* Cores beside the main one. */
unsigned int okm_worker_cores(void);
/* Registers the calling thread with DPDK and ties it to the CPUs of the given worker core, if there is one. */
int okm_enter_worker(unsigned int number);
int okm_main_socket(void);

#endif
