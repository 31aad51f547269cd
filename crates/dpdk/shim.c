#include "shim.h"

#include <errno.h>
#include <rte_log.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

int okm_errno(void)
{
	return rte_errno;
}

int okm_heap(unsigned int place, struct okm_heap *heap)
{
	struct rte_malloc_socket_stats found;
	int socket = rte_socket_id_by_idx(place);
	int error;

	if (socket < 0)
		return -ENOENT;
	error = rte_malloc_get_socket_stats(socket, &found);
	if (error != 0)
		return -EINVAL;
	heap->size = found.heap_totalsz_bytes;
	heap->free_size = found.heap_freesz_bytes;
	heap->greatest_free_size = found.greatest_free_size;
	heap->allocated_size = found.heap_allocsz_bytes;
	heap->allocations = found.alloc_count;
	heap->free_pieces = found.free_count;
	return 0;
}

int okm_next_port(uint16_t port)
{
	uint16_t found = rte_eth_find_next(port);

	return found < RTE_MAX_ETHPORTS ? found : -1;
}

int okm_info(uint16_t port, struct okm_info *info)
{
	struct rte_eth_dev_info found;
	struct rte_ether_addr mac;
	char name[RTE_ETH_NAME_MAX_LEN] = "";
	int error;

	memset(info, 0, sizeof(*info));
	error = rte_eth_dev_info_get(port, &found);
	if (error != 0)
		return error;
	error = rte_eth_dev_get_name_by_port(port, name);
	if (error != 0)
		return error;
	error = rte_eth_macaddr_get(port, &mac);
	if (error != 0)
		return error;
	error = rte_eth_dev_get_mtu(port, &info->mtu);
	if (error != 0)
		return error;
	snprintf(info->name, sizeof(info->name), "%s", name);
	snprintf(info->driver, sizeof(info->driver), "%s", found.driver_name);
	memcpy(info->mac, mac.addr_bytes, sizeof(info->mac));
	info->if_index = found.if_index;
	info->queues_max = RTE_MIN(found.max_rx_queues, found.max_tx_queues);
	info->mtu_max = found.max_mtu;
	info->tx_offloads = found.tx_offload_capa;
	info->rx_offloads = found.rx_offload_capa;
	info->socket = rte_eth_dev_socket_id(port);
	return 0;
}

#define VHOST_DRIVER "net_vhost"

/* DPDK's driver tells them under a lock, which packet threads do not take. */
static _Atomic uint64_t guest_features[RTE_MAX_ETHPORTS];

/* A guest has come or gone. */
static int guest_changed(uint16_t port, enum rte_eth_event_type event, void *context, void *result)
{
	uint64_t features = 0;
	int device;

	RTE_SET_USED(event);
	RTE_SET_USED(context);
	RTE_SET_USED(result);
	if (okm_link(port) == 1) {
		device = rte_eth_vhost_get_vid_from_port_id(port);
		if (device < 0 || rte_vhost_get_negotiated_features(device, &features) != 0)
			features = 0;
	}
	atomic_store_explicit(&guest_features[port], features, memory_order_relaxed);
	return 0;
}

int okm_start(uint16_t port)
{
	struct rte_eth_dev_info info;
	int error = rte_eth_dev_start(port);

	/* The guest may have been there before the port was started, of which nobody tells. */
	if (error == 0 && rte_eth_dev_info_get(port, &info) == 0 && strcmp(info.driver_name, VHOST_DRIVER) == 0)
		guest_changed(port, RTE_ETH_EVENT_INTR_LSC, NULL, NULL);
	return error;
}

int okm_configure(uint16_t port, struct okm_config *config)
{
	struct rte_eth_conf conf;
	struct rte_eth_dev_info info;
	struct rte_eth_rxconf rx;
	struct rte_eth_txconf tx;
	uint16_t rx_descriptors = config->rx_descriptors;
	uint16_t tx_descriptors = config->tx_descriptors;
	uint16_t queue;
	int error, socket;

	error = rte_eth_dev_info_get(port, &info);
	if (error != 0)
		return error;
	memset(&conf, 0, sizeof(conf));
	conf.rxmode.mtu = RTE_ETHER_MTU;
	rte_eth_dev_get_mtu(port, &queue);
	if (queue != 0)
		conf.rxmode.mtu = queue;
	conf.rxmode.offloads = config->rx_offloads & info.rx_offload_capa;
	conf.txmode.offloads = config->tx_offloads & info.tx_offload_capa;
	conf.intr_conf.rxq = config->interrupts;
	if (config->queues > 1) {
		conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf.rx_adv_conf.rss_conf.rss_hf =
			info.flow_type_rss_offloads & (RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP);
	}
	error = rte_eth_dev_configure(port, config->queues, config->queues, &conf);
	if (error != 0 && config->interrupts) {
		config->interrupts = 0;
		conf.intr_conf.rxq = 0;
		error = rte_eth_dev_configure(port, config->queues, config->queues, &conf);
	}
	if (error != 0)
		return error;
	error = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx_descriptors, &tx_descriptors);
	if (error != 0)
		return error;
	socket = rte_eth_dev_socket_id(port);
	rx = info.default_rxconf;
	tx = info.default_txconf;
	rx.offloads = conf.rxmode.offloads;
	tx.offloads = conf.txmode.offloads;
	for (queue = 0; queue < config->queues; queue++) {
		error = rte_eth_rx_queue_setup(port, queue, rx_descriptors, socket, &rx, config->pool);
		if (error != 0)
			return error;
		error = rte_eth_tx_queue_setup(port, queue, tx_descriptors, socket, &tx);
		if (error != 0)
			return error;
	}
	if (strcmp(info.driver_name, VHOST_DRIVER) != 0)
		return 0;
	/* Registering twice is registering once. */
	return rte_eth_dev_callback_register(port, RTE_ETH_EVENT_INTR_LSC, guest_changed, NULL);
}

uint64_t okm_guest_features(uint16_t port)
{
	return port < RTE_MAX_ETHPORTS ? atomic_load_explicit(&guest_features[port], memory_order_relaxed) : 0;
}

int okm_stats(uint16_t port, struct okm_stats *stats)
{
	struct rte_eth_stats found;
	int error = rte_eth_stats_get(port, &found);

	if (error != 0)
		return error;
	stats->rx_packets = found.ipackets;
	stats->rx_bytes = found.ibytes;
	stats->rx_missed = found.imissed;
	stats->rx_errors = found.ierrors;
	stats->rx_no_buffer = found.rx_nombuf;
	stats->tx_packets = found.opackets;
	stats->tx_bytes = found.obytes;
	stats->tx_errors = found.oerrors;
	return 0;
}

int okm_link(uint16_t port)
{
	struct rte_eth_link link;
	int error = rte_eth_link_get_nowait(port, &link);

	return error != 0 ? error : link.link_status == RTE_ETH_LINK_UP;
}

int okm_xstat(uint16_t port, unsigned int index, char *name, uint64_t *value)
{
	struct rte_eth_xstat_name found;
	uint64_t id = index;

	if (name == NULL)
		return rte_eth_xstats_get_names(port, NULL, 0);
	if (rte_eth_xstats_get_names_by_id(port, &found, 1, &id) != 1)
		return -EINVAL;
	if (rte_eth_xstats_get_by_id(port, &id, value, 1) != 1)
		return -EINVAL;
	snprintf(name, OKM_NAME_LEN, "%s", found.name);
	return 0;
}

uint16_t okm_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, packets, count);
}

uint16_t okm_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, packets, count);
}

int okm_rx_interrupt_watch(uint16_t port, uint16_t queue, int epoll, int on)
{
	return rte_eth_dev_rx_intr_ctl_q(port, queue, epoll,
					 on ? RTE_INTR_EVENT_ADD : RTE_INTR_EVENT_DEL, NULL);
}

int okm_rx_interrupt_arm(uint16_t port, uint16_t queue, int epoll)
{
	struct rte_epoll_event event;

	/* DPDK reads what its driver wants read: the counter of an event descriptor, but no packet of a TAP. */
	while (rte_epoll_wait(epoll, &event, 1, 0) > 0)
		;
	return rte_eth_dev_rx_intr_enable(port, queue);
}

struct rte_mbuf *okm_mbuf_alloc(struct rte_mempool *pool)
{
	return rte_pktmbuf_alloc(pool);
}

void okm_mbuf_free(struct rte_mbuf *packet)
{
	rte_pktmbuf_free(packet);
}

int okm_mbuf_take_left(struct rte_mbuf *packet, uint16_t *segment_len)
{
	uint64_t flags = packet->ol_flags;
	uint64_t tx_l4 = flags & RTE_MBUF_F_TX_L4_MASK;
	int left = OKM_LEFT_NOTHING;

	packet->ol_flags = flags & ~(RTE_MBUF_F_TX_OFFLOAD_MASK | OKM_LEFT_FLAGS);
	*segment_len = packet->tso_segsz;
	/* vhost marks such packets as if they were to be sent, unless it was told otherwise (legacy-ol-flags=0). */
	if (flags & RTE_MBUF_F_TX_UDP_SEG || tx_l4 == RTE_MBUF_F_TX_SCTP_CKSUM)
		left = OKM_LEFT_OTHER;
	else if (flags & (RTE_MBUF_F_RX_LRO | RTE_MBUF_F_TX_TCP_SEG))
		left = OKM_LEFT_SEGMENTS;
	else if (tx_l4 != 0 || (flags & RTE_MBUF_F_RX_L4_CKSUM_MASK) == RTE_MBUF_F_RX_L4_CKSUM_NONE)
		left = OKM_LEFT_CHECKSUM;
	return left;
}

/* A note is what drivers want to know of a packet anyway, and the length from the TCP header on, which is true however the front is edited. */
void okm_mbuf_note(struct rte_mbuf *packet, uint32_t tcp_len, uint16_t segment_len)
{
	packet->ol_flags |= OKM_NOTE_FLAG;
	packet->tso_segsz = segment_len;
	packet->hash.usr = tcp_len;
}

void okm_mbuf_noted(const struct rte_mbuf *packet, uint32_t *tcp_len, uint16_t *segment_len)
{
	*tcp_len = packet->hash.usr;
	*segment_len = packet->tso_segsz;
}

void okm_mbuf_forget(struct rte_mbuf *packet)
{
	packet->ol_flags &= ~RTE_MBUF_F_TX_OFFLOAD_MASK;
}

void okm_mbuf_describe(struct rte_mbuf *packet, uint8_t ip_start, uint16_t tcp_start, uint8_t tcp_header_len, int is_v6)
{
	packet->ol_flags |= is_v6 ? RTE_MBUF_F_TX_IPV6 : RTE_MBUF_F_TX_IPV4;
	if (packet->tso_segsz != 0)
		packet->ol_flags |= RTE_MBUF_F_TX_TCP_SEG;
	packet->l2_len = ip_start;
	packet->l3_len = tcp_start - ip_start;
	packet->l4_len = tcp_header_len;
}

static ssize_t write_log(void *cookie, const char *text, size_t length)
{
	okm_log_sink sink = (okm_log_sink)(uintptr_t)cookie;

	sink((uint32_t)rte_log_cur_msg_loglevel(), text, length);
	return (ssize_t)length;
}

int okm_log_to(okm_log_sink sink)
{
	cookie_io_functions_t functions = { .write = write_log };
	FILE *stream = fopencookie((void *)(uintptr_t)sink, "w", functions);

	if (stream == NULL)
		return -ENOMEM;
	return rte_openlog_stream(stream);
}

unsigned int okm_worker_cores(void)
{
	return rte_lcore_count() - 1;
}

int okm_enter_worker(unsigned int number)
{
	unsigned int core, place = 0;
	rte_cpuset_t cpus;

	CPU_ZERO(&cpus);
	RTE_LCORE_FOREACH_WORKER(core) {
		if (place++ == number)
			cpus = rte_lcore_cpuset(core);
	}
	if (rte_lcore_id() == LCORE_ID_ANY && rte_thread_register() != 0)
		return -rte_errno;
	if (CPU_COUNT(&cpus) == 0)
		return 0;
	return rte_thread_set_affinity(&cpus);
}

int okm_main_socket(void)
{
	return (int)rte_lcore_to_socket_id(rte_get_main_lcore());
}
