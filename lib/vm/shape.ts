/**
 * What is relied upon of what stands on disk, which anybody may have written. Pure.
 *
 * @module
 */

/** A type's name, a list of one shape, or what an object has at least. */
export type Shape = "boolean" | "number" | "string" | readonly [Shape] | {
  readonly [key: string]: Shape;
};

/** Port mappings. */
export const PORTS_SHAPE: Shape = [
  { hostIP: "string", hostPort: "number", vmPort: "number", protocol: "string" },
];

/** What the firewall does for one interface. */
export const RULES_SHAPE: Shape = {
  owner: "string",
  link: "string",
  addresses: ["string"],
  ports: PORTS_SHAPE,
};

const RECORD_SHAPE: Shape = {
  id: "string",
  netns: "string",
  interfaces: [{
    name: "string",
    network: "string",
    mode: "string",
    tap: "string",
    mac: "string",
    mtu: "number",
    addresses: [{ address: "string" }],
    routes: [{ dst: "string" }],
  }],
  dns: { nameservers: ["string"], search: ["string"] },
  ports: PORTS_SHAPE,
  made: {
    phase: "string",
    netnsGiven: "boolean",
    request: { name: "string" },
    networks: [{
      network: "string",
      containerId: "string",
      ifName: "string",
      plugins: [{ type: "string", config: {} }],
    }],
    guests: [RULES_SHAPE],
  },
};

/** What a record may have beside that. */
const OPTIONAL: Readonly<Record<string, Shape>> = {
  portOwners: { attach: PORTS_SHAPE, mapPort: PORTS_SHAPE },
  run: "string",
  netnsIs: { boot: "string", dev: "number", ino: "number" },
};

/** Whether a value is the record of a VM. */
export function isRecord(value: unknown): boolean {
  if (!isVersioned(value, RECORD_SHAPE)) return false;
  const { made } = value as { made: Readonly<Record<string, unknown>> };
  return Object.entries(OPTIONAL).every(([key, shape]) =>
    made[key] === undefined || hasShape(made[key], shape)
  );
}

/** Whether a value is of this version of tapkit and has at least what a shape says. */
export function isVersioned(value: unknown, shape: Shape): boolean {
  return hasShape(value, shape) && (value as { version?: unknown }).version === 1;
}

function hasShape(value: unknown, shape: Shape): boolean {
  if (typeof shape === "string") {
    const type: string = typeof value;
    return type === shape;
  }
  if (isListShape(shape)) {
    return Array.isArray(value) && value.every((item) => hasShape(item, shape[0]));
  }
  if (typeof value !== "object" || value === null) return false;
  const fields: Readonly<Record<string, unknown>> = { ...value };
  return Object.entries(shape).every(([key, inner]) => hasShape(fields[key], inner));
}

function isListShape(shape: Exclude<Shape, string>): shape is readonly [Shape] {
  return Array.isArray(shape);
}
