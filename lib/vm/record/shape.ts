/**
 * Checks the shape of records that are read from disk, as far as the code relies on it. Pure.
 *
 * @module
 */

/** The version of the records' format that is written. */
export const RECORD_VERSION = 2;

/**
 * A type, a list of one shape, or the keys that an object has at least. A key that ends in `?` may
 * be absent.
 */
type Shape = "boolean" | "number" | "string" | readonly [Shape] | {
  readonly [key: string]: Shape;
};

const PORT = {
  hostIP: "string",
  hostPort: "number",
  vmPort: "number",
  protocol: "string",
} as const;
const CLAIMS: Shape = [{ ...PORT, by: "string", chosen: "boolean" }];

const LIMITS: Shape = { link: "string", "connections?": "number", "openings?": "number" };
const NETNS: Shape = { boot: "string", dev: "number", ino: "number" };
const ADDRESSES: Shape = [{ address: "string", "gateway?": "string" }];
const ROUTES: Shape = [{ dst: "string", "gw?": "string" }];
const DNS: Shape = { nameservers: ["string"], search: ["string"] };

/** The plugins of a network that ran for an interface. */
const CHAIN: Shape = {
  network: "string",
  containerId: "string",
  ifName: "string",
  plugins: [{ type: "string", config: {} }],
};

const BOTH: Shape = {
  spec: {
    id: { name: "string", containerId: "string" },
    networks: ["string"],
    "tapOwner?": "string",
    "queues?": "number",
    "netns?": "string",
    "run?": "string",
    plugins: "string",
    mode: "string",
    firewall: "string",
    capabilities: {},
    cniArgs: {},
    antispoof: "boolean",
    linkLocal: "string",
    policy: {
      isolated: "boolean",
      denyEgress: ["string"],
      allowEgress: ["string"],
      reachableFrom: ["string"],
    },
    claims: CLAIMS,
    openPorts: "boolean",
    "docker?": { "image?": "string", "container?": "string" },
  },
  facts: {
    netns: { path: "string", given: "boolean", "is?": NETNS },
    networks: [{
      attachment: CHAIN,
      "docker?": { "container?": "string", ports: [PORT] },
      "link?": { mac: "string", mtu: "number", addresses: ADDRESSES, routes: ROUTES },
      "reach?": {
        link: "string",
        addresses: ["string"],
        masquerade: "boolean",
        forward: "boolean",
        "hostEnd?": "string",
        "bridge?": "string",
      },
      "limits?": LIMITS,
      "wire?": { mode: "string", guarded: "boolean" },
    }],
    dns: DNS,
  },
};

const ADDRESS: Shape = {
  to: "string",
  firewall: "string",
  link: "string",
  claims: CLAIMS,
  openPorts: "boolean",
};

const BRIDGE: Shape = { link: "string", firewall: "string" };

/** Whether a value is a record of a VM in the present format. */
export function isAttachment(value: unknown): boolean {
  return isState(value, BOTH);
}

/** Whether a value is a record of an address in the present format. */
export function isAddressAttachment(value: unknown): boolean {
  return isState(value, ADDRESS);
}

/** Whether a value is a record of a bridge. */
export function isBridgeAttachment(value: unknown): boolean {
  return isState(value, BRIDGE);
}

function isState(value: unknown, side: Shape): boolean {
  if (!isVersion(RECORD_VERSION, value)) return false;
  const { is, at, from, to } = value as Record<string, unknown>;
  if (is === "attached") return hasShape(at, side);
  return is === "changing" && [from, to].every((one) => one === undefined || hasShape(one, side));
}

function isVersion(version: number, value: unknown): boolean {
  return hasShape(value, { version: "number" }) &&
    (value as { version: number }).version === version;
}

/** A VM's record of version 1. */
const RECORD_1: Shape = {
  vm: "string",
  id: "string",
  netns: "string",
  interfaces: [{
    name: "string",
    network: "string",
    mode: "string",
    tap: "string",
    mac: "string",
    mtu: "number",
    addresses: ADDRESSES,
    routes: ROUTES,
  }],
  dns: DNS,
  ports: [PORT],
  made: {
    phase: "string",
    netnsGiven: "boolean",
    request: { name: "string" },
    networks: [CHAIN],
    guests: [{ owner: "string", link: "string", addresses: ["string"], ports: [PORT] }],
    "portOwners?": { attach: [PORT], mapPort: [PORT] },
    "run?": "string",
    "netnsIs?": NETNS,
  },
};

/** An address's record of version 1. */
const ADDRESS_1: Shape = {
  to: "string",
  rules: { owner: "string", link: "string", addresses: ["string"], ports: [PORT] },
  mapPort: [PORT],
  firewall: "string",
};

/** Whether a value is a record of a VM of version 1. */
export function isRecord1(value: unknown): boolean {
  return isVersion(1, value) && hasShape(value, RECORD_1);
}

/** Whether a value is a record of an address of version 1. */
export function isAddress1(value: unknown): boolean {
  return isVersion(1, value) && hasShape(value, ADDRESS_1);
}

type Test = (value: unknown) => boolean;

/** Of shapes that are used: a VM may have ten thousand ports, each of the same shape. */
const tests = new WeakMap<object, Test>();

/** Whether a value has a shape. */
function hasShape(value: unknown, shape: Shape): boolean {
  if (typeof shape === "string") return (typeof value as string) === shape;
  const known = tests.get(shape);
  if (known !== undefined) return known(value);
  const test = testOf(shape);
  tests.set(shape, test);
  return test(value);
}

function testOf(shape: Shape): Test {
  if (typeof shape === "string") return (value) => (typeof value as string) === shape;
  if (isListShape(shape)) {
    const test = testOf(shape[0]);
    return (value) => Array.isArray(value) && value.every(test);
  }
  const fields = Object.entries(shape).map(([key, inner]) => {
    const isOptional = key.endsWith("?");
    return { name: isOptional ? key.slice(0, -1) : key, isOptional, test: testOf(inner) };
  });
  return (value) =>
    typeof value === "object" && value !== null &&
    fields.every(({ name, isOptional, test }) => {
      const field = Object.hasOwn(value, name)
        ? (value as Readonly<Record<string, unknown>>)[name]
        : undefined;
      return isOptional && field === undefined || test(field);
    });
}

function isListShape(shape: Exclude<Shape, string>): shape is readonly [Shape] {
  return Array.isArray(shape);
}
