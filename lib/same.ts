/**
 * Comparing plain values.
 *
 * @module
 */

/** Whether two plain values are equal. What both share is not looked into. */
export function isSame(one: unknown, other: unknown): boolean {
  if (Object.is(one, other)) return true;
  if (typeof one !== "object" || typeof other !== "object" || !one || !other) return false;
  if (Array.isArray(one) && Array.isArray(other)) {
    return one.length === other.length && one.every((value, index) => isSame(value, other[index]));
  }
  const [a, b] = [Object.entries(one), Object.entries(other)];
  return Array.isArray(one) === Array.isArray(other) && a.length === b.length &&
    a.every(([key, value]) => isSame(value, (other as Record<string, unknown>)[key]));
}
