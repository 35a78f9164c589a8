/** What a guest on Docker's network is told of name servers. */

import { assertEquals } from "@std/assert";
import { containerDns } from "../../lib/vm/network/docker-plan.ts";
import type { Container } from "../../lib/docker/docker.ts";

type Asked = Pick<Container, "HostConfig" | "ResolvConfPath">;

async function dnsOf(resolvConf: string, named: readonly string[] | null = null) {
  const path = await Deno.makeTempFile({ prefix: "tapkit-resolv-" });
  try {
    await Deno.writeTextFile(path, resolvConf);
    const HostConfig = { Dns: named, DnsSearch: null } as Container["HostConfig"];
    return containerDns({ HostConfig, ResolvConfPath: path } satisfies Asked);
  } finally {
    await Deno.remove(path);
  }
}

// To Deno 2.5, functions of libc that are looked up during a test are a leak.
Deno.test(
  "containerDns: the container's own, those in its resolv.conf, those behind Docker's resolver",
  { sanitizeResources: false },
  async () => {
    assertEquals(await dnsOf("nameserver 198.51.100.1\n", ["198.51.100.9"]), {
      nameservers: ["198.51.100.9"],
      search: [],
    });
    assertEquals(await dnsOf("nameserver 198.51.100.1\nsearch example.test\n"), {
      nameservers: ["198.51.100.1"],
      search: ["example.test"],
    });
    // As Docker 27 writes it.
    const embedded = `nameserver 127.0.0.11
search example.test
options ndots:0

# Based on host file: '/etc/resolv.conf' (internal resolver)
# ExtServers: [198.51.100.1 host(127.0.0.53) host(198.51.100.2)]
`;
    assertEquals(await dnsOf(embedded), {
      nameservers: ["198.51.100.1", "198.51.100.2"],
      search: ["example.test"],
    });
    assertEquals(await dnsOf("nameserver 127.0.0.11\noptions ndots:0\n"), {});
  },
);
