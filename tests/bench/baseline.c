/*
 * What attaching COUNT virtual machines costs the kernel: a C program that makes the calls tapkit
 * makes for each, one after the other, and does nothing else.
 *
 * Build: cc -O2 -o baseline baseline.c -ldl
 * Usage: baseline COUNT DIRECTORY   (as root, in a throwaway host; files go below DIRECTORY)
 * Prints a line "ms" for each, like a stopwatch of laps.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_bridge.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/tc_act/tc_mirred.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BRIDGE "bench0"
/* Instructions of tapkit's guards of a TAP and of its interface. */
#define TAP_GUARD_LENGTH 236
#define LINK_GUARD_LENGTH 181
/* The group of the links in a VM's namespace. */
#define LINK_GROUP 0x746b

struct message {
	struct nlmsghdr header;
	char bytes[8192];
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int check(int result, const char *what)
{
	if (result < 0)
		die(what);
	return result;
}

static void *reserve(struct message *m, size_t size)
{
	void *at = (char *)m + NLMSG_ALIGN(m->header.nlmsg_len);
	memset(at, 0, NLMSG_ALIGN(size));
	m->header.nlmsg_len = NLMSG_ALIGN(m->header.nlmsg_len) + size;
	return at;
}

static void begin(struct message *m, int type, int flags, const void *fixed, size_t size)
{
	memset(&m->header, 0, sizeof m->header);
	m->header.nlmsg_len = NLMSG_HDRLEN;
	m->header.nlmsg_type = type;
	m->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	memcpy(reserve(m, size), fixed, size);
}

static struct rtattr *attribute(struct message *m, int type, const void *value, size_t size)
{
	struct rtattr *a = reserve(m, RTA_LENGTH(size));
	a->rta_type = type;
	a->rta_len = RTA_LENGTH(size);
	if (size > 0)
		memcpy(RTA_DATA(a), value, size);
	return a;
}

static void text(struct message *m, int type, const char *value)
{
	attribute(m, type, value, strlen(value) + 1);
}

static void u32(struct message *m, int type, unsigned value)
{
	attribute(m, type, &value, sizeof value);
}

static struct rtattr *nest(struct message *m, int type)
{
	return attribute(m, type, NULL, 0);
}

static void end(struct message *m, struct rtattr *a)
{
	a->rta_len = (char *)m + m->header.nlmsg_len - (char *)a;
}

static int open_route(void)
{
	int fd = check(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), "netlink");
	struct sockaddr_nl address = { .nl_family = AF_NETLINK };
	check(bind(fd, (struct sockaddr *)&address, sizeof address), "bind");
	return fd;
}

/* Sends a request and reads up to its acknowledgement; returns the index of a link it told of. */
static int transact(int fd, struct message *m, const char *what)
{
	static char reply[65536];
	int index = 0;
	check(send(fd, m, m->header.nlmsg_len, 0), what);
	for (;;) {
		int size = check(recv(fd, reply, sizeof reply, 0), what);
		struct nlmsghdr *h = (struct nlmsghdr *)reply;
		for (; NLMSG_OK(h, (unsigned)size); h = NLMSG_NEXT(h, size)) {
			if (h->nlmsg_type == RTM_NEWLINK)
				index = ((struct ifinfomsg *)NLMSG_DATA(h))->ifi_index;
			if (h->nlmsg_type != NLMSG_ERROR)
				continue;
			errno = -((struct nlmsgerr *)NLMSG_DATA(h))->error;
			if (errno != 0)
				die(what);
			return index;
		}
	}
}

static int find_link(int fd, const char *name)
{
	struct message m;
	struct ifinfomsg info = { 0 };
	begin(&m, RTM_GETLINK, 0, &info, sizeof info);
	text(&m, IFLA_IFNAME, name);
	return transact(fd, &m, name);
}

static void set_up(int fd, int index, unsigned mtu)
{
	struct message m;
	struct ifinfomsg info = { .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP };
	begin(&m, RTM_NEWLINK, 0, &info, sizeof info);
	if (mtu != 0)
		u32(&m, IFLA_MTU, mtu);
	transact(fd, &m, "link up");
}

static void write_text(const char *path, const char *value)
{
	int fd = check(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), path);
	check(write(fd, value, strlen(value)), path);
	close(fd);
}

static void add_address(int fd, int index, unsigned address, int prefix)
{
	struct message m;
	struct ifaddrmsg info = { AF_INET, prefix, 0, RT_SCOPE_UNIVERSE, index };
	unsigned wire = htonl(address);
	begin(&m, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &info, sizeof info);
	attribute(&m, IFA_LOCAL, &wire, sizeof wire);
	attribute(&m, IFA_ADDRESS, &wire, sizeof wire);
	transact(fd, &m, "address");
}

static void add_default_route(int fd, int index, unsigned gateway)
{
	struct message m;
	struct rtmsg info = { .rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN,
		.rtm_protocol = RTPROT_STATIC, .rtm_type = RTN_UNICAST };
	unsigned wire = htonl(gateway);
	begin(&m, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &info, sizeof info);
	attribute(&m, RTA_GATEWAY, &wire, sizeof wire);
	u32(&m, RTA_OIF, index);
	transact(fd, &m, "route");
}

static int add_bridge(int fd)
{
	struct message m;
	struct ifinfomsg info = { 0 };
	begin(&m, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &info, sizeof info);
	text(&m, IFLA_IFNAME, BRIDGE);
	struct rtattr *link = nest(&m, IFLA_LINKINFO);
	text(&m, IFLA_INFO_KIND, "bridge");
	end(&m, link);
	transact(fd, &m, "bridge");
	int index = find_link(fd, BRIDGE);
	set_up(fd, index, 0);
	add_address(fd, index, 0xac120001, 16);
	return index;
}

static int add_veth(int fd, const char *name, int bridge, int netns)
{
	struct message m;
	struct ifinfomsg info = { 0 };
	begin(&m, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO, &info, sizeof info);
	text(&m, IFLA_IFNAME, name);
	u32(&m, IFLA_MTU, 1500);
	u32(&m, IFLA_MASTER, bridge);
	struct rtattr *link = nest(&m, IFLA_LINKINFO);
	text(&m, IFLA_INFO_KIND, "veth");
	struct rtattr *data = nest(&m, IFLA_INFO_DATA);
	struct rtattr *peer = nest(&m, VETH_INFO_PEER);
	memcpy(reserve(&m, sizeof info), &info, sizeof info);
	text(&m, IFLA_IFNAME, "eth0");
	u32(&m, IFLA_MTU, 1500);
	u32(&m, IFLA_NET_NS_FD, netns);
	u32(&m, IFLA_GROUP, LINK_GROUP);
	end(&m, peer);
	end(&m, data);
	end(&m, link);
	return transact(fd, &m, "veth");
}

static void set_hairpin(int fd, int index)
{
	struct message m;
	struct ifinfomsg info = { .ifi_family = AF_BRIDGE, .ifi_index = index };
	unsigned char on = 1;
	begin(&m, RTM_SETLINK, 0, &info, sizeof info);
	struct rtattr *port = nest(&m, IFLA_PROTINFO | NLA_F_NESTED);
	attribute(&m, IFLA_BRPORT_MODE, &on, sizeof on);
	end(&m, port);
	transact(fd, &m, "hairpin");
}

static void set_alias(int fd, int index, const char *alias)
{
	struct message m;
	struct ifinfomsg info = { .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP };
	begin(&m, RTM_NEWLINK, 0, &info, sizeof info);
	attribute(&m, IFLA_IFALIAS, alias, strlen(alias));
	transact(fd, &m, "alias");
}

static void add_ingress(int fd, int index)
{
	struct message m;
	struct tcmsg info = { .tcm_ifindex = index, .tcm_handle = 0xffff0000,
		.tcm_parent = TC_H_INGRESS };
	begin(&m, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &info, sizeof info);
	text(&m, TCA_KIND, "ingress");
	transact(fd, &m, "ingress");
}

static void begin_filter(struct message *m, int index, int priority, const char *kind)
{
	struct tcmsg info = { .tcm_ifindex = index, .tcm_parent = 0xffff0000,
		.tcm_info = (unsigned)priority << 16 | htons(ETH_P_ALL) };
	begin(m, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &info, sizeof info);
	text(m, TCA_KIND, kind);
}

static void add_guard(int fd, int index, unsigned short length)
{
	struct message m;
	struct sock_filter program[TAP_GUARD_LENGTH];
	for (int i = 0; i < length - 1; i++)
		program[i] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12);
	program[length - 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, TC_ACT_UNSPEC);
	begin_filter(&m, index, 1, "bpf");
	struct rtattr *options = nest(&m, TCA_OPTIONS);
	attribute(&m, TCA_BPF_OPS_LEN, &length, sizeof length);
	attribute(&m, TCA_BPF_OPS, program, length * sizeof *program);
	text(&m, TCA_BPF_NAME, "guard");
	u32(&m, TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
	end(&m, options);
	transact(fd, &m, "guard");
}

static void add_redirect(int fd, int from, int to)
{
	struct message m;
	struct {
		struct tc_u32_sel sel;
		struct tc_u32_key key;
	} match = { .sel = { .flags = TC_U32_TERMINAL, .nkeys = 1 } };
	struct tc_mirred mirred = { .action = TC_ACT_STOLEN, .eaction = TCA_EGRESS_REDIR,
		.ifindex = to };
	begin_filter(&m, from, 2, "u32");
	struct rtattr *options = nest(&m, TCA_OPTIONS);
	attribute(&m, TCA_U32_SEL, &match, sizeof match);
	struct rtattr *actions = nest(&m, TCA_U32_ACT);
	struct rtattr *action = nest(&m, 1);
	text(&m, TCA_ACT_KIND, "mirred");
	struct rtattr *parms = nest(&m, TCA_ACT_OPTIONS);
	attribute(&m, TCA_MIRRED_PARMS, &mirred, sizeof mirred);
	end(&m, parms);
	end(&m, action);
	end(&m, actions);
	end(&m, options);
	transact(fd, &m, "redirect");
}

static void add_tap(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	strcpy(request.ifr_name, name);
	int fd = check(open("/dev/net/tun", O_RDWR | O_CLOEXEC), "/dev/net/tun");
	check(ioctl(fd, TUNSETIFF, &request), "TUNSETIFF");
	check(ioctl(fd, TUNSETPERSIST, 1), "TUNSETPERSIST");
	close(fd);
}

/* libnftables, of which no header is needed. */
static void *(*nft_new)(unsigned);
static int (*nft_run)(void *, const char *);

static void *open_nftables(void)
{
	void *library = dlopen("libnftables.so.1", RTLD_NOW);
	if (library == NULL) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	nft_new = dlsym(library, "nft_ctx_new");
	nft_run = dlsym(library, "nft_run_cmd_from_buffer");
	return nft_new(0);
}

static void nftables(void *context, const char *commands)
{
	if (nft_run(context, commands) != 0)
		exit(1);
}

static void write_record(const char *directory, int n)
{
	char path[256], temporary[300], record[2048];
	memset(record, 'r', sizeof record - 1);
	record[sizeof record - 1] = 0;
	snprintf(path, sizeof path, "%s/vm%d.json", directory, n);
	snprintf(temporary, sizeof temporary, "%s.tmp", path);
	int fd = check(open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), temporary);
	check(write(fd, record, sizeof record - 1), temporary);
	check(fdatasync(fd), temporary);
	close(fd);
	check(rename(temporary, path), path);
}

static int make_netns(int n, int home)
{
	char path[64];
	snprintf(path, sizeof path, "/run/netns/bench-%d", n);
	close(check(open(path, O_CREAT | O_EXCL | O_RDONLY | O_CLOEXEC, 0), path));
	check(unshare(CLONE_NEWNET), "unshare");
	check(mount("/proc/thread-self/ns/net", path, "none", MS_BIND, NULL), "mount");
	int netns = check(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC), "netns");
	check(setns(home, CLONE_NEWNET), "setns");
	return netns;
}

static void attach(int n, int home, int host, int bridge, void *nft, const char *directory)
{
	char name[32], path[128], commands[512];
	unsigned address = 0xac120002 + n;
	write_record(directory, n);
	int netns = make_netns(n, home);
	check(setns(netns, CLONE_NEWNET), "setns");
	int guest = open_route();
	check(setns(home, CLONE_NEWNET), "setns");
	set_up(guest, find_link(guest, "lo"), 0);

	snprintf(path, sizeof path, "%s/172.18.%u.%u", directory, address >> 8 & 255, address & 255);
	write_text(path, "reserved");
	snprintf(name, sizeof name, "bench-%d", n);
	int veth = add_veth(host, name, bridge, netns);
	check(setns(netns, CLONE_NEWNET), "setns");
	write_text("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
	check(setns(home, CLONE_NEWNET), "setns");
	snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
	write_text(path, "1");
	set_hairpin(host, veth);
	set_alias(host, veth, name);
	int eth0 = find_link(guest, "eth0");
	add_address(guest, eth0, address, 16);
	set_up(guest, eth0, 0);
	add_default_route(guest, eth0, 0xac120001);

	check(setns(netns, CLONE_NEWNET), "setns");
	add_tap("vm_eth0");
	write_text("/proc/sys/net/ipv6/conf/vm_eth0/disable_ipv6", "1");
	check(setns(home, CLONE_NEWNET), "setns");
	int tap = find_link(guest, "vm_eth0");
	add_ingress(guest, tap);
	add_ingress(guest, eth0);
	add_guard(guest, tap, TAP_GUARD_LENGTH);
	add_guard(guest, eth0, LINK_GUARD_LENGTH);
	add_redirect(guest, tap, eth0);
	add_redirect(guest, eth0, tap);
	set_up(guest, tap, 1500);

	snprintf(commands, sizeof commands,
		"add element inet bench guests { 172.18.%u.%u . \"" BRIDGE "\" comment \"vm%d\" }\n"
		"add element inet bench ports { tcp . %d comment \"vm%d\" : 172.18.%u.%u . 80 }\n",
		address >> 8 & 255, address & 255, n, 10000 + n, n, address >> 8 & 255, address & 255);
	nftables(nft, commands);
	write_record(directory, n);
	close(guest);
	close(netns);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

int main(int count, char **arguments)
{
	if (count != 3) {
		fprintf(stderr, "usage: baseline COUNT DIRECTORY\n");
		return 2;
	}
	mkdir("/run/netns", 0755);
	if (mount("", "/run/netns", "none", MS_SHARED | MS_REC, NULL) < 0) {
		check(mount("/run/netns", "/run/netns", "none", MS_BIND | MS_REC, NULL), "mount");
		check(mount("", "/run/netns", "none", MS_SHARED | MS_REC, NULL), "mount");
	}
	int home = check(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "netns");
	int host = open_route();
	int bridge = add_bridge(host);
	void *nft = open_nftables();
	nftables(nft,
		"add table inet bench\n"
		"add set inet bench guests { type ipv4_addr . ifname; }\n"
		"add map inet bench ports { type inet_proto . inet_service : ipv4_addr . inet_service; }\n"
		"add chain inet bench published { type nat hook prerouting priority -100; }\n"
		"add rule inet bench published dnat ip to meta l4proto . th dport map @ports\n"
		"add chain inet bench leaving { type nat hook postrouting priority 100; }\n"
		"add rule inet bench leaving ip saddr . meta iifname @guests masquerade\n");
	for (int n = 0; n < atoi(arguments[1]); n++) {
		double start = now();
		attach(n, home, host, bridge, nft, arguments[2]);
		printf("%.3f\n", now() - start);
	}
	return 0;
}
