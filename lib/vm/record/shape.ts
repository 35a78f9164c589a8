/**
 * What is relied upon of what stands on disk, which anybody may have written. Pure.
 *
 * @module
 */

/**
 * A type's name, a list of one shape, or what an object has at least. A key that ends in `?` may be
 * absent.
 */
export type Shape = "boolean" | "number" | "string" | readonly [Shape] | {
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

const IDENTITY: Shape = { "is?": { boot: "string", dev: "number", ino: "number" } };

const ADDRESSES: Shape = [{ address: "string", "gateway?": "string" }];
const ROUTES: Shape = [{ dst: "string", "gw?": "string" }];
const DNS: Shape = { nameservers: ["string"], search: ["string"] };

/** An interface on a network, as its plugins ran. */
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
  },
  facts: {
    netns: { path: "string", given: "boolean", ...IDENTITY },
    networks: [{
      attachment: CHAIN,
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

/** Whether a value is the attachment of a VM, as this version writes it. */
export function isAttachment(value: unknown): boolean {
  return isState(value, BOTH);
}

/** Whether a value is what is mapped to an address, as this version writes it. */
export function isAddressAttachment(value: unknown): boolean {
  return isState(value, ADDRESS);
}

function isState(value: unknown, side: Shape): boolean {
  return hasShape(value, { version: "number", is: "string" }) &&
    (value as { version: number }).version === 2 &&
    (hasShape(value, { is: "string", at: side }) && isOfState(value, "attached") ||
      hasShape(value, { "from?": side, "to?": side }) && isOfState(value, "changing"));
}

function isOfState(value: unknown, is: string): boolean {
  return (value as { is?: unknown }).is === is;
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
    "netnsIs?": { boot: "string", dev: "number", ino: "number" },
  },
};

/** An address's record of version 1. */
const ADDRESS_1: Shape = {
  to: "string",
  rules: { owner: "string", link: "string", addresses: ["string"], ports: [PORT] },
  mapPort: [PORT],
  firewall: "string",
};

/** Whether a value is the record of a VM, as version 1 wrote it. */
export function isRecord1(value: unknown): boolean {
  return hasShape(value, { version: "number" }) &&
    (value as { version: number }).version === 1 && hasShape(value, RECORD_1);
}

/** Whether a value is the record of an address, as version 1 wrote it. */
export function isAddress1(value: unknown): boolean {
  return hasShape(value, { version: "number" }) &&
    (value as { version: number }).version === 1 && hasShape(value, ADDRESS_1);
}

/** Whether a value has at least what a shape says. */
export function hasShape(value: unknown, shape: Shape): boolean {
  if (typeof shape === "string") {
    const type: string = typeof value;
    return type === shape;
  }
  if (isListShape(shape)) {
    return Array.isArray(value) && value.every((item) => hasShape(item, shape[0]));
  }
  if (typeof value !== "object" || value === null) return false;
  const fields: Readonly<Record<string, unknown>> = { ...value };
  return Object.entries(shape).every(([key, inner]) => {
    if (!key.endsWith("?")) return hasShape(fields[key], inner);
    const field = fields[key.slice(0, -1)];
    return field === undefined || hasShape(field, inner);
  });
}

function isListShape(shape: Exclude<Shape, string>): shape is readonly [Shape] {
  return Array.isArray(shape);
}
