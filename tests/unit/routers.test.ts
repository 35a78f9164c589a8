import { assertEquals } from "@std/assert";
import type { Route } from "../../lib/netlink/route.ts";
import { type GivenIdentity, guestIdentity } from "../../lib/vm/network/routers.ts";

const IP = { address: "10.5.0.2/24", gateway: "10.5.0.1" };
const IP6 = { address: "fd00:5::2/64", gateway: "fd00:5::1" };

/** A route of the namespace; eth0 is link 2. */
function seen(dst: string, gateway?: string, more: Partial<Route> = {}): Route {
  const family = dst.includes(":") ? 6 : 4;
  const rest = { table: 254, scope: "global", type: "unicast", protocol: "boot" } as const;
  return { family, dst, ...rest, oif: 2, ...gateway === undefined ? {} : { gateway }, ...more };
}

Deno.test("guestIdentity: a gateway is a router where a default route goes by it", () => {
  const all = "0.0.0.0/0";
  const table: [
    what: string,
    given: Omit<GivenIdentity, "oif">,
    routers: string[],
    routes: string[],
  ][] = [
    ["built in: none named", { ips: [IP, IP6], named: [] }, ["-", "-"], []],
    ["built in: one named", { ips: [IP], named: [{ dst: all, gw: "10.5.0.1" }] }, ["10.5.0.1"], [
      "0.0.0.0/0 10.5.0.1",
    ]],
    [
      "the gateway is the next hop of what names none",
      {
        ips: [IP, IP6],
        named: [{ dst: all }, { dst: "10.9.0.0/16" }, { dst: "fd09::/64" }],
      },
      ["10.5.0.1", "-"],
      ["0.0.0.0/0 10.5.0.1", "10.9.0.0/16 10.5.0.1", "fd09::/64 fd00:5::1"],
    ],
    [
      "but not of what leads to it",
      {
        ips: [IP],
        named: [{ dst: "10.5.0.1/32" }, { dst: "10.5.0.0/24" }],
      },
      ["-"],
      ["10.5.0.1/32 -", "10.5.0.0/24 -"],
    ],
    [
      "the route's own next hop",
      {
        ips: [IP],
        named: [{ dst: all, gw: "10.5.0.254" }],
      },
      ["10.5.0.254"],
      ["0.0.0.0/0 10.5.0.254"],
    ],
    [
      "a router beside none of the addresses is the first one's",
      {
        ips: [{ address: "10.5.0.2/32" }, { address: "10.6.0.2/32" }],
        named: [{ dst: "169.254.1.1/32" }, { dst: all, gw: "169.254.1.1" }],
      },
      ["169.254.1.1", "-"],
      ["169.254.1.1/32 -", "0.0.0.0/0 169.254.1.1"],
    ],
    [
      "the address that it is beside",
      {
        ips: [{ address: "10.6.0.2/24" }, IP],
        named: [{ dst: all, gw: "10.5.0.1" }],
      },
      ["-", "10.5.0.1"],
      ["0.0.0.0/0 10.5.0.1"],
    ],
    // Weave's plugin: an address, its gateway, and a default route that it does not name.
    ["executed: not named, there", { ips: [IP], named: [], seen: [seen(all, "10.5.0.1")] }, [
      "10.5.0.1",
    ], ["0.0.0.0/0 10.5.0.1"]],
    ["executed: not there", { ips: [IP], named: [], seen: [seen("10.5.0.0/24")] }, ["-"], []],
    [
      "executed: another interface's default route",
      {
        ips: [IP],
        named: [{ dst: all, gw: "10.5.0.1" }, { dst: "10.9.0.0/16" }],
        seen: [seen(all, "10.4.0.1", { oif: 7 }), seen("10.9.0.0/16", "10.5.0.1")],
      },
      ["-"],
      ["10.9.0.0/16 10.5.0.1"],
    ],
    [
      "a default route that an interface before has",
      {
        ips: [IP, IP6],
        named: [{ dst: all, gw: "10.5.0.1" }, { dst: "::/0", gw: "fd00:5::1" }],
        seen: [seen(all, "10.5.0.1"), seen(all, "10.4.0.1", { oif: 7 }), seen("::/0", "fd00:5::1")],
        before: [{ routes: [{ dst: "0.0.0.0/0", gw: "10.4.0.1" }] }],
      },
      ["-", "fd00:5::1"],
      ["::/0 fd00:5::1"],
    ],
    [
      "executed: none of a router's advertisements, and nothing that refuses",
      {
        ips: [IP, IP6],
        named: [],
        seen: [
          seen("::/0", "fe80::1", { protocol: "ra" }),
          seen(all, undefined, { type: "prohibit" }),
        ],
      },
      ["-", "-"],
      [],
    ],
  ];
  for (const [what, given, routers, routes] of table) {
    const identity = guestIdentity({ ...given, oif: 2 });
    assertEquals(identity.addresses.map(({ gateway = "-" }) => gateway), routers, what);
    assertEquals(identity.routes.map(({ dst, gw = "-" }) => `${dst} ${gw}`), routes, what);
  }
});
