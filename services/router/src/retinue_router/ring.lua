-- The fair ring: weighted deficit round robin over tenants that have logs waiting. Ids only; every key shares one tag.
-- KEYS[1] = prefix, such as {r:chat}
-- :ring  list of tenants with waiting logs      :on   set of the same       :q:T   list of T's waiting logs
-- :in    set "T|log": in a queue already        :def  hash of credits       :w     hash of weights, 1 where absent
-- :lim   hash of limits of runs at once
-- :run:T zset log -> end of lease (in flight)   :bell list of tickets that wake blocked workers: "1", or "T|log" itself
-- :gen   name of this ring's life: who knows another name tells limits and slots anew before it takes anything
--
-- While nothing waits at all, a log is handed over with the ticket: the worker that it wakes need not ask for it. There is
-- at most one such ticket, the oldest in the bell, and pop looks at it first, so that it never waits behind the ring. Its
-- slot was made with it: a log that has one already, since somebody works on it, is put into its queue instead.
local P, op = KEYS[1], ARGV[1]

local function ring_bell(most)
  if redis.call('LLEN', P .. ':bell') < most then redis.call('RPUSH', P .. ':bell', 1) end
end

local function queue(t, s, most)                       -- once: nothing happens where the log is in a queue already
  if redis.call('SADD', P .. ':in', t .. '|' .. s) == 0 then return 0 end
  redis.call('RPUSH', P .. ':q:' .. t, s)
  if redis.call('SADD', P .. ':on', t) == 1 then
    redis.call('RPUSH', P .. ':ring', t)
    redis.call('HSET', P .. ':def', t, redis.call('HGET', P .. ':w', t) or 1)
  end
  ring_bell(most)
  return 1
end

if op == 'push' then                       -- tenant, log, tickets to keep at most, now, limit where none is set, lease
  local t, s = ARGV[2], ARGV[3]
  local named = t .. '|' .. s
  if redis.call('EXISTS', P .. ':ring', P .. ':bell') > 0 then
    if redis.call('LINDEX', P .. ':bell', 0) == named then return 0 end
  elseif redis.call('EXISTS', P .. ':gen') == 1 then   -- else: limits were lost, and whoever pops restores them
    local run, limit = P .. ':run:' .. t, tonumber(redis.call('HGET', P .. ':lim', t) or ARGV[6])
    redis.call('ZREMRANGEBYSCORE', run, '-inf', ARGV[5])
    if redis.call('ZCARD', run) < limit and redis.call('ZADD', run, 'NX', ARGV[5] + ARGV[7], s) == 1 then
      redis.call('RPUSH', P .. ':bell', named)
      return 1
    end
  end
  return queue(t, s, tonumber(ARGV[4]))
end
if op == 'sweep' then                                  -- tickets to keep at most, then tenant and log of each
  local head, count = redis.call('LINDEX', P .. ':bell', 0), 0
  for i = 3, #ARGV, 2 do
    if head ~= ARGV[i] .. '|' .. ARGV[i + 1] then count = count + queue(ARGV[i], ARGV[i + 1], tonumber(ARGV[2])) end
  end
  return count
end
if op == 'done' then                                   -- tenant, log, tickets to keep at most: frees the slot
  redis.call('ZREM', P .. ':run:' .. ARGV[2], ARGV[3])
  if redis.call('EXISTS', P .. ':ring') == 1 then ring_bell(tonumber(ARGV[4])) end
  return 1
end
if op == 'held' then                                   -- now, lease, then tenant and log of each: keeps slots of live runs
  for i = 4, #ARGV, 2 do
    redis.call('ZADD', P .. ':run:' .. ARGV[i], ARGV[2] + ARGV[3], ARGV[i + 1])
  end
  return 1
end
if op == 'limits' then                                 -- tenant, limit, weight of each
  for i = 2, #ARGV, 3 do
    redis.call('HSET', P .. ':lim', ARGV[i], ARGV[i + 1])
    redis.call('HSET', P .. ':w', ARGV[i], ARGV[i + 2])
  end
  return 1
end
-- pop: now, limit where none is set, lease, rounds at most, the ring's life as the caller knows it, a name for a new one,
-- tickets to keep at most. Answers tenant, log, whether more waits, and whether the log's slot was made by this.
local now, default_limit, lease = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('SETNX', P .. ':gen', ARGV[7])
local gen = redis.call('GET', P .. ':gen')
if gen ~= ARGV[6] then return {gen} end
local head = redis.call('LINDEX', P .. ':bell', 0)
if head and head ~= '1' then
  redis.call('LPOP', P .. ':bell')
  local t, s = string.match(head, '^(.-)|(.*)$')
  redis.call('ZADD', P .. ':run:' .. t, now + lease, s)          -- it may have lain here for longer than its lease
  return {t, s, redis.call('EXISTS', P .. ':ring'), 1}
end
-- The turn of a tenant lasts as long as its credit. One at its limit keeps both, and its place: it goes on as soon as one of
-- its runs ends. Weights are 0.1 or more, so that each tenant has credit after ten rounds of the ring.
local i, t = 0, nil
for _ = 1, math.min(tonumber(ARGV[5]), 12 * (1 + redis.call('LLEN', P .. ':ring'))) do
  t = redis.call('LINDEX', P .. ':ring', i)
  if not t then break end
  local run = P .. ':run:' .. t
  if tonumber(redis.call('HGET', P .. ':def', t) or 0) < 1 then
    redis.call('HINCRBYFLOAT', P .. ':def', t, redis.call('HGET', P .. ':w', t) or 1)
    redis.call('LREM', P .. ':ring', 1, t)
    redis.call('RPUSH', P .. ':ring', t)
  else
    redis.call('ZREMRANGEBYSCORE', run, '-inf', now)
    if redis.call('ZCARD', run) < tonumber(redis.call('HGET', P .. ':lim', t) or default_limit) then
      local s, made = redis.call('LPOP', P .. ':q:' .. t), 0
      if s then
        redis.call('SREM', P .. ':in', t .. '|' .. s)
        made = redis.call('ZADD', run, now + lease, s)
        redis.call('HINCRBYFLOAT', P .. ':def', t, -1)
      end
      if redis.call('EXISTS', P .. ':q:' .. t) == 0 then
        redis.call('LREM', P .. ':ring', 1, t)
        redis.call('SREM', P .. ':on', t)
        redis.call('HDEL', P .. ':def', t)                       -- credit is not hoarded
        redis.call('DEL', P .. ':seen')                          -- older processes keep here whose turn has begun
      end
      if s then                                                  -- else: a Redis short of memory dropped the queue
        local more = redis.call('EXISTS', P .. ':ring')
        if more == 0 then redis.call('DEL', P .. ':bell') end      -- old tickets would wake workers for nothing
        return {t, s, more, made}
      end
    else
      i = i + 1
    end
  end
end
-- Nothing may be taken now: old tickets would only wake workers for nothing. A later push or done rings again.
redis.call('DEL', P .. ':bell')
if t then ring_bell(tonumber(ARGV[8])) end                         -- not all were looked at: somebody goes on
return false
