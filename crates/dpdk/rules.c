/* Rules of rte_flow from flat structures. Pattern items and actions point into one scratch value on the stack, which DPDK copies. */
#include "shim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

union item {
	struct rte_flow_item_ethdev ethdev;
	struct rte_flow_item_eth eth;
	struct rte_flow_item_ipv4 ipv4;
	struct rte_flow_item_ipv6 ipv6;
	struct rte_flow_item_tcp tcp;
	struct rte_flow_item_udp udp;
	struct rte_flow_item_icmp icmp;
};

union action {
	struct rte_flow_action_raw_decap decap;
	struct rte_flow_action_raw_encap encap;
	struct rte_flow_action_set_mac mac;
	struct rte_flow_action_set_ipv4 ipv4;
	struct rte_flow_action_set_ipv6 ipv6;
	struct rte_flow_action_set_tp tp;
	struct rte_flow_action_set_ttl ttl;
	struct rte_flow_action_count count;
	struct rte_flow_action_age age;
	struct rte_flow_action_ethdev ethdev;
	struct rte_flow_action_queue queue;
};

struct scratch {
	struct rte_flow_item items[OKM_ITEMS_MAX + 2];
	union item specs[OKM_ITEMS_MAX + 1];
	union item masks[OKM_ITEMS_MAX + 1];
	struct rte_flow_action actions[OKM_ACTIONS_MAX + 1];
	union action confs[OKM_ACTIONS_MAX];
	uint8_t headers[OKM_ACTIONS_MAX][OKM_HEADER_MAX];
};

static void bits(uint8_t *mask, unsigned int count, unsigned int size)
{
	unsigned int at;

	for (at = 0; at < size * 8 && at < count; at++)
		mask[at / 8] |= 0x80 >> (at % 8);
}

static enum rte_flow_item_type ipv4_item(const struct okm_item *item, union item *spec, union item *mask)
{
	memcpy(&spec->ipv4.hdr.src_addr, item->source, 4);
	memcpy(&spec->ipv4.hdr.dst_addr, item->destination, 4);
	bits((uint8_t *)&mask->ipv4.hdr.src_addr, item->source_bits, 4);
	bits((uint8_t *)&mask->ipv4.hdr.dst_addr, item->destination_bits, 4);
	/* No options, no fragment. */
	spec->ipv4.hdr.version_ihl = 0x45;
	mask->ipv4.hdr.version_ihl = 0xff;
	mask->ipv4.hdr.fragment_offset = RTE_BE16(0x3fff);
	if (item->protocol != 0) {
		spec->ipv4.hdr.next_proto_id = item->protocol;
		mask->ipv4.hdr.next_proto_id = 0xff;
	}
	if (item->ttl >= 0) {
		spec->ipv4.hdr.time_to_live = (uint8_t)item->ttl;
		mask->ipv4.hdr.time_to_live = 0xff;
	}
	return RTE_FLOW_ITEM_TYPE_IPV4;
}

static enum rte_flow_item_type ipv6_item(const struct okm_item *item, union item *spec, union item *mask)
{
	memcpy(spec->ipv6.hdr.src_addr, item->source, 16);
	memcpy(spec->ipv6.hdr.dst_addr, item->destination, 16);
	bits(mask->ipv6.hdr.src_addr, item->source_bits, 16);
	bits(mask->ipv6.hdr.dst_addr, item->destination_bits, 16);
	if (item->protocol != 0) {
		spec->ipv6.hdr.proto = item->protocol;
		mask->ipv6.hdr.proto = 0xff;
	}
	if (item->ttl >= 0) {
		spec->ipv6.hdr.hop_limits = (uint8_t)item->ttl;
		mask->ipv6.hdr.hop_limits = 0xff;
	}
	if (item->unmarked) {
		spec->ipv6.hdr.vtc_flow = RTE_BE32(0x60000000);
		mask->ipv6.hdr.vtc_flow = RTE_BE32(0xffffffff);
	}
	return RTE_FLOW_ITEM_TYPE_IPV6;
}

static enum rte_flow_item_type fill_item(const struct okm_item *item, union item *spec, union item *mask)
{
	rte_be16_t first = rte_cpu_to_be_16(item->first);
	rte_be16_t second = rte_cpu_to_be_16(item->second);

	switch (item->kind) {
	case OKM_ITEM_ETHERNET:
		spec->eth.type = first;
		mask->eth.type = RTE_BE16(0xffff);
		return RTE_FLOW_ITEM_TYPE_ETH;
	case OKM_ITEM_IPV4:
		return ipv4_item(item, spec, mask);
	case OKM_ITEM_IPV6:
		return ipv6_item(item, spec, mask);
	case OKM_ITEM_TCP:
		spec->tcp.hdr.src_port = first;
		spec->tcp.hdr.dst_port = second;
		mask->tcp.hdr.src_port = RTE_BE16(0xffff);
		mask->tcp.hdr.dst_port = RTE_BE16(0xffff);
		mask->tcp.hdr.tcp_flags = RTE_TCP_FIN_FLAG | RTE_TCP_SYN_FLAG | RTE_TCP_RST_FLAG;
		return RTE_FLOW_ITEM_TYPE_TCP;
	case OKM_ITEM_UDP:
		spec->udp.hdr.src_port = first;
		spec->udp.hdr.dst_port = second;
		mask->udp.hdr.src_port = RTE_BE16(0xffff);
		mask->udp.hdr.dst_port = RTE_BE16(0xffff);
		return RTE_FLOW_ITEM_TYPE_UDP;
	default:
		spec->icmp.hdr.icmp_type = item->protocol;
		spec->icmp.hdr.icmp_ident = first;
		mask->icmp.hdr.icmp_type = 0xff;
		mask->icmp.hdr.icmp_code = 0xff;
		mask->icmp.hdr.icmp_ident = RTE_BE16(0xffff);
		return RTE_FLOW_ITEM_TYPE_ICMP;
	}
}

static enum rte_flow_action_type set_action(const struct okm_action *action, union action *conf)
{
	switch (action->kind) {
	case OKM_ACTION_SET_MAC_SRC:
	case OKM_ACTION_SET_MAC_DST:
		memcpy(conf->mac.mac_addr, action->bytes, 6);
		return action->kind == OKM_ACTION_SET_MAC_SRC ? RTE_FLOW_ACTION_TYPE_SET_MAC_SRC
							       : RTE_FLOW_ACTION_TYPE_SET_MAC_DST;
	case OKM_ACTION_SET_IPV4_SRC:
	case OKM_ACTION_SET_IPV4_DST:
		memcpy(&conf->ipv4.ipv4_addr, action->bytes, 4);
		return action->kind == OKM_ACTION_SET_IPV4_SRC ? RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC
								: RTE_FLOW_ACTION_TYPE_SET_IPV4_DST;
	case OKM_ACTION_SET_IPV6_SRC:
	case OKM_ACTION_SET_IPV6_DST:
		memcpy(conf->ipv6.ipv6_addr, action->bytes, 16);
		return action->kind == OKM_ACTION_SET_IPV6_SRC ? RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC
								: RTE_FLOW_ACTION_TYPE_SET_IPV6_DST;
	case OKM_ACTION_SET_TP_SRC:
	case OKM_ACTION_SET_TP_DST:
		conf->tp.port = rte_cpu_to_be_16((uint16_t)action->value);
		return action->kind == OKM_ACTION_SET_TP_SRC ? RTE_FLOW_ACTION_TYPE_SET_TP_SRC
							      : RTE_FLOW_ACTION_TYPE_SET_TP_DST;
	default:
		conf->ttl.ttl_value = (uint8_t)action->value;
		return RTE_FLOW_ACTION_TYPE_SET_TTL;
	}
}

static enum rte_flow_action_type fill_action(const struct okm_rule *rule, const struct okm_action *action,
					      union action *conf, uint8_t *header)
{
	memcpy(header, action->bytes, OKM_HEADER_MAX);
	switch (action->kind) {
	case OKM_ACTION_RAW_DECAP:
		conf->decap.data = header;
		conf->decap.size = action->value;
		return RTE_FLOW_ACTION_TYPE_RAW_DECAP;
	case OKM_ACTION_RAW_ENCAP:
		conf->encap.data = header;
		conf->encap.size = action->length;
		return RTE_FLOW_ACTION_TYPE_RAW_ENCAP;
	case OKM_ACTION_DEC_TTL:
		return RTE_FLOW_ACTION_TYPE_DEC_TTL;
	case OKM_ACTION_COUNT:
		return RTE_FLOW_ACTION_TYPE_COUNT;
	case OKM_ACTION_AGE:
		/* A field of 24 bits. */
		conf->age.timeout = RTE_MIN(action->value, 0xffffffu);
		return RTE_FLOW_ACTION_TYPE_AGE;
	case OKM_ACTION_PORT:
		conf->ethdev.port_id = (uint16_t)action->value;
		return RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT;
	case OKM_ACTION_SOFTWARE:
		if (!rule->transfer)
			return RTE_FLOW_ACTION_TYPE_QUEUE;
		conf->ethdev.port_id = rule->port;
		return RTE_FLOW_ACTION_TYPE_PORT_REPRESENTOR;
	default:
		return set_action(action, conf);
	}
}

static void fill(const struct okm_rule *rule, struct scratch *scratch)
{
	unsigned int place, at = 0;

	memset(scratch, 0, sizeof(*scratch));
	if (rule->transfer) {
		scratch->specs[at].ethdev.port_id = rule->port;
		scratch->masks[at].ethdev.port_id = UINT16_MAX;
		scratch->items[at].type = RTE_FLOW_ITEM_TYPE_REPRESENTED_PORT;
		at++;
	}
	for (place = 0; place < rule->item_count && place < OKM_ITEMS_MAX; place++, at++)
		scratch->items[at].type =
			fill_item(&rule->items[place], &scratch->specs[at], &scratch->masks[at]);
	for (place = 0; place < at; place++) {
		scratch->items[place].spec = &scratch->specs[place];
		scratch->items[place].mask = &scratch->masks[place];
	}
	scratch->items[at].type = RTE_FLOW_ITEM_TYPE_END;
	for (at = 0; at < rule->action_count && at < OKM_ACTIONS_MAX; at++) {
		const struct okm_action *action = &rule->actions[at];

		scratch->actions[at].type =
			fill_action(rule, action, &scratch->confs[at], scratch->headers[at]);
		if (action->kind != OKM_ACTION_DEC_TTL)
			scratch->actions[at].conf = &scratch->confs[at];
	}
	scratch->actions[at].type = RTE_FLOW_ACTION_TYPE_END;
}

int okm_rule_create(const struct okm_rule *rule, struct rte_flow **created, char *text)
{
	struct rte_flow_attr attr = {
		.priority = rule->priority,
		.ingress = !rule->transfer,
		.transfer = rule->transfer,
	};
	struct rte_flow_error error;
	struct scratch scratch;
	int result;

	memset(&error, 0, sizeof(error));
	text[0] = '\0';
	fill(rule, &scratch);
	result = rte_flow_validate(rule->port, &attr, scratch.items, scratch.actions, &error);
	if (result == 0) {
		*created = rte_flow_create(rule->port, &attr, scratch.items, scratch.actions, &error);
		if (*created != NULL)
			return 0;
		result = rte_errno != 0 ? -rte_errno : -EINVAL;
	}
	snprintf(text, OKM_NAME_LEN, "%s", error.message != NULL ? error.message : rte_strerror(-result));
	return result;
}

int okm_rule_destroy(uint16_t port, struct rte_flow *rule)
{
	struct rte_flow_error error;

	return rte_flow_destroy(port, rule, &error);
}

int okm_rule_query(uint16_t port, struct rte_flow *rule, uint64_t *packets, uint64_t *bytes)
{
	struct rte_flow_query_count found;
	struct rte_flow_error error;
	const struct rte_flow_action count[] = {
		{ .type = RTE_FLOW_ACTION_TYPE_COUNT },
		{ .type = RTE_FLOW_ACTION_TYPE_END },
	};
	int result;

	memset(&found, 0, sizeof(found));
	result = rte_flow_query(port, rule, count, &found, &error);
	if (result != 0)
		return result;
	*packets = found.hits_set ? found.hits : 0;
	*bytes = found.bytes_set ? found.bytes : 0;
	return 0;
}

int okm_rule_flush(uint16_t port)
{
	struct rte_flow_error error;

	return rte_flow_flush(port, &error);
}

int okm_isolate(uint16_t port)
{
	struct rte_flow_error error;

	return rte_flow_isolate(port, 1, &error);
}
