"""Owns the scripts by which Redis counts against limits per minute (`rates.py` says by which rule).

A limit is a hash, {second: what was counted in it}. A script begins with the time, and runs with no other between.
"""

from __future__ import annotations

NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""
# Field 0 of a hash says what was last worked out of it: in which second, how much counts, the newest second of that.
# Within a second nothing ceases to count, so it holds to the end of that second: of the calls of one second, the first
# looks through a minute's counts for all of them, which would be most of what a call costs Redis.
KNOWN = """
local second = math.floor(now / 1000)
local function known(key)
  local at, used, newest = string.match(redis.call('HGET', key, '0') or '', '^(%d+) (%d+) (%d+)$')
  if tonumber(at) == second then return tonumber(used), tonumber(newest) end
end
local function note(key, used, newest)
  redis.call('HSET', key, '0', string.format('%.0f %.0f %.0f', second, used, newest))
end
"""
# KEYS: one hash per limit. ARGV: limit and cost of each.
# Answers whole numbers, joined by spaces: the number of the limit that refuses or 0, milliseconds until it has room
# or -1 where it never has, this second, then of each limit: what counts now, milliseconds until nothing does.
TAKE = (
    KNOWN
    + """
local answer = {0, 0, second}
local function joined()
  for i, number in ipairs(answer) do answer[i] = string.format('%.0f', number) end
  return table.concat(answer, ' ')
end
local function counted(key)
  local found = redis.call('HGETALL', key)
  local used, newest = 0, second - 61
  for j = 1, #found, 2 do
    local at = tonumber(found[j])
    if at == 0 or at <= second - 61 then
      redis.call('HDEL', key, found[j])
    else
      if at > second then
        redis.call('HDEL', key, found[j])
        redis.call('HINCRBY', key, second, found[j + 1])
        redis.call('PEXPIRE', key, 62000)
        at = second
      end
      used = used + tonumber(found[j + 1])
      newest = math.max(newest, at)
    end
  end
  if used > 0 then note(key, used, newest) end
  return used, newest
end
local function wait(key, left, cost, amount)
  local found, counts = redis.call('HGETALL', key), {}
  for j = 1, #found, 2 do counts[tonumber(found[j])] = tonumber(found[j + 1]) end
  for at = second - 60, second do
    left = left - (counts[at] or 0)
    if left + cost <= amount then return (at + 61) * 1000 - now end
  end
  return -1
end
for i, key in ipairs(KEYS) do
  local amount, cost = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local used, newest = known(key)
  if used == nil then used, newest = counted(key) end
  if used + cost > amount and answer[1] == 0 then
    answer[1], answer[2] = i, wait(key, used, cost, amount)
  end
  answer[2 + 2 * i] = used
  answer[3 + 2 * i] = math.max((newest + 61) * 1000 - now, 0)
end
if answer[1] > 0 then return joined() end
for i, key in ipairs(KEYS) do
  local cost = tonumber(ARGV[2 * i])
  if cost > 0 then
    -- The first of a second sets when all is forgotten, which holds for those that follow in it.
    if redis.call('HINCRBY', key, second, ARGV[2 * i]) == cost then redis.call('PEXPIRE', key, 62000) end
    answer[2 + 2 * i] = answer[2 + 2 * i] + cost
    answer[3 + 2 * i] = (second + 61) * 1000 - now
    note(key, answer[2 + 2 * i], second)
  end
end
return joined()
"""
)
# KEYS: hashes as above. ARGV: for each, the second in which was counted, and what is to be added (may be negative).
CORRECT = (
    KNOWN
    + """
for i, key in ipairs(KEYS) do
  local at, more = ARGV[2 * i - 1], tonumber(ARGV[2 * i])
  local used, newest = known(key)
  if more > 0 then
    redis.call('HINCRBY', key, second, ARGV[2 * i])
    redis.call('PEXPIRE', key, 62000)
    newest = second
  elseif redis.call('HEXISTS', key, at) == 1 then
    local left = redis.call('HINCRBY', key, at, ARGV[2 * i])
    if left <= 0 then
      redis.call('HDEL', key, at)
      more = more - left
      if tonumber(at) == newest then used = nil end
    end
  else
    more = 0
  end
  if used then note(key, used + more, newest) else redis.call('HDEL', key, '0') end
end
"""
)
