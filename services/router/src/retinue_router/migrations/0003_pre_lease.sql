-- What the holder of a lease does: claim, renew, checkpoint, park, finish. Every write is conditional on the token.
set local search_path = router;

create type held_1 as (
  token bigint, run_id text, attempt int, kind text, contact text, session_id text, input jsonb, checkpoint bytea, traceparent text,
  queued_s double precision,       -- seconds from its acceptance to this claim
  runtime text, runtime_age_s double precision,          -- what the log used last
  approvals jsonb,                 -- answers since it was parked
  history jsonb,                   -- what was said in the session before, newest first: [{role, text}]
  events jsonb,                    -- durable events that this call wrote, to be published
  prev text,                       -- cursor of the durable event before them
  keep_token bigint,               -- lowest token whose deltas are still to be kept on the bus
  ring bool);                      -- there is more to do, and nobody was given it

-- Writes durable events of one token in order and answers them as written. Each element: n, type, data, run_id, session_id; time
-- where it was told before.
-- Moves the log's last cursor. The caller holds the log's row. What is recorded under its cursor already, by a commit whose answer
-- was lost or not waited for, stays as it is and is answered with the rest.
create function write_events_1(t text, p_log text, p_token bigint, ev jsonb) returns jsonb language plpgsql as $$
declare l record; written jsonb; before jsonb := '[]';
begin
  if jsonb_array_length(ev) = 0 then return '[]'; end if;
  select x.last_token, x.last_n into l from logs x where x.tenant_id = t and x.log_id = p_log;
  if l.last_token = p_token and (ev -> 0 ->> 'n')::int <= l.last_n then
    select coalesce(jsonb_agg(jsonb_build_object('n', e.n, 'prev', e.prev_token || '-' || e.prev_n, 'type', e.type, 'data', e.data,
        'run_id', e.run_id, 'session_id', e.session_id, 'time', e.time) order by e.n), '[]') into before
      from events e where e.tenant_id = t and e.log_id = p_log and e.token = p_token and e.n >= (ev -> 0 ->> 'n')::int;
    select coalesce(jsonb_agg(x order by (x ->> 'n')::int), '[]') into ev from jsonb_array_elements(ev) x where (x ->> 'n')::int > l.last_n;
    if jsonb_array_length(ev) = 0 then return before; end if;
  end if;
  with e as (
    select e.*, lag(e.n) over (order by e.n) as before from jsonb_to_recordset(ev) as e (n int, type text, data jsonb, run_id text, session_id text, time timestamptz)
  ), w as (
    insert into events (tenant_id, log_id, token, n, prev_token, prev_n, session_id, run_id, type, data, time)
      select t, p_log, p_token, e.n, case when e.before is null then l.last_token else p_token end, coalesce(e.before, l.last_n),
        e.session_id, coalesce(e.run_id, ''), e.type, e.data, coalesce(e.time, clock_timestamp()) from e order by e.n
      returning *
  ) select jsonb_agg(jsonb_build_object('n', w.n, 'prev', w.prev_token || '-' || w.prev_n, 'type', w.type, 'data', w.data,
      'run_id', w.run_id, 'session_id', w.session_id, 'time', w.time) order by w.n) into written from w;
  update logs x set last_token = p_token, last_n = (written -> -1 ->> 'n')::int where x.tenant_id = t and x.log_id = p_log;
  return before || written;
end $$;

-- Ends a run under its token: row, usage, news for whom it concerns. The caller holds the log's row.
create function end_run_1(t text, r runs, p_state text, p_output text, p_usage jsonb, p_error jsonb, p_agent text) returns text language plpgsql as $$
begin
  update runs x set state = p_state, output = p_output, usage = p_usage, error = p_error, end_time = clock_timestamp(), checkpoint = null,
      dropped = (coalesce(x.cancel, '') = 'rollback')
    where x.tenant_id = t and x.run_id = r.run_id;
  update approvals a set state = 'expired', decide_time = clock_timestamp() where a.tenant_id = t and a.run_id = r.run_id and a.state = 'pending';
  insert into usage_logs (tenant_id, run_id, attempt, agent_id, runtime, model, message_count, input_tokens, output_tokens)
    values (t, r.run_id, r.attempt, coalesce(p_agent, ''), coalesce(r.runtime, ''), coalesce(p_usage ->> 'model', ''),
      case when p_output is null then 1 else 2 end, coalesce((p_usage ->> 'input_tokens')::int, 0), coalesce((p_usage ->> 'output_tokens')::int, 0))
    on conflict do nothing;
  return tell_end_1(t, r, p_state, p_output);
end $$;

create function cancelled_data_1(r runs) returns jsonb language sql immutable as $$
  select jsonb_build_object('by', coalesce(r.cancel_by, '')) ||
    case when r.cancel = 'rollback' and r.said_token is not null then jsonb_build_object('rewind_to', r.said_token || '-' || r.said_n) else '{}' end
$$;

-- The conversation so far: what was said in a session before this token, newest first. Left out: answers that
-- were rolled back, and what the run itself recorded in earlier attempts.
create function history_1(t text, p_log text, p_session text, p_run text, p_before bigint, p_limit int) returns jsonb language sql stable as $$
  select coalesce(jsonb_agg(jsonb_build_object('role', case h.type when 'user.message' then 'user' else 'assistant' end, 'text', h.data ->> 'text')
      order by h.token desc, h.n desc), '[]') from (
    select e.type, e.data, e.token, e.n from events e
    where e.tenant_id = t and e.log_id = p_log and e.session_id = p_session and e.type in ('user.message', 'assistant.message')
      and e.token < p_before and e.run_id <> p_run
      and (e.type = 'user.message' or e.run_id <> all (array(select r.run_id from runs r where r.tenant_id = t and r.log_id = p_log and r.dropped)))
    order by e.token desc, e.n desc limit p_limit) h
$$;

-- The part shared by claim and finish; the caller holds the log's row. Gives the run to execute, if there is one, and what
-- became a fact on the way. Nothing to do at all: token is null, and the log is given back.
create function take_1(t text, p_log text, p_holder text, ttl interval, p_attempts int) returns held_1 language plpgsql as $$
declare h held_1; r runs; l logs; ev jsonb := '[]'; tok bigint; i int := 0; parked_until timestamptz; ended bool := false; m record; more bool;
begin
  select * into l from logs x where x.tenant_id = t and x.log_id = p_log;
  select * into r from runs x where x.tenant_id = t and x.log_id = p_log and x.state in ('running', 'waiting');   -- index one_runner
  if r.state = 'waiting' then
    select min(a.expire_time) into parked_until from approvals a
      where a.tenant_id = t and a.run_id = r.run_id and a.state = 'pending' and a.expire_time > clock_timestamp();
    if parked_until is not null then r := null; end if;           -- undecided: only mail may be taken
  elsif r.run_id is null then                                     -- else: running, and its holder is gone
    select * into r from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'queued' order by x.position limit 1;  -- index runs_queued
  end if;
  if r.run_id is null and not exists (select from mail x where x.tenant_id = t and x.log_id = p_log) then
    update logs x set holder = null, due_time = parked_until where x.tenant_id = t and x.log_id = p_log;
    return null;
  end if;
  tok := l.token + 1;
  h.token := tok; h.prev := l.last_token || '-' || l.last_n;
  if r.run_id is not null then
    -- A dead holder's run with a wish to stop is ended, not run again; so is one out of attempts.
    ended := r.state = 'running' and (r.cancel is not null or r.attempt >= p_attempts);
    if r.attempt > 0 and r.state <> 'waiting' and not ended then
      i := i + 1;
      ev := ev || jsonb_build_object('n', i, 'type', 'run.resumed', 'run_id', r.run_id, 'session_id', r.session_id,
        'data', jsonb_build_object('attempt', r.attempt + 1, 'rewind_to', h.prev));
    end if;
  end if;
  for m in with d as (delete from mail x where x.tenant_id = t and x.log_id = p_log returning *) select * from d order by d.mail_id loop
    i := i + 1;
    ev := ev || jsonb_build_object('n', i, 'type', m.type, 'run_id', m.run_id, 'session_id', m.session_id, 'data', m.data);
  end loop;
  if ended then
    i := i + 1;
    -- Ended under the new token: whoever lost this run must not take the end for his own.
    update runs x set token = tok where x.tenant_id = t and x.run_id = r.run_id;
    if r.cancel is not null then
      perform end_run_1(t, r, 'cancelled', null, null, null, null);
      ev := ev || jsonb_build_object('n', i, 'type', 'run.cancelled', 'run_id', r.run_id, 'session_id', r.session_id, 'data', cancelled_data_1(r));
    else
      h.input := jsonb_build_object('code', 14, 'message', 'The run used up its attempts: each was lost with the process that made it.', 'details',
        jsonb_build_array(jsonb_build_object('@type', 'type.googleapis.com/google.rpc.ErrorInfo', 'reason', 'ATTEMPTS_EXHAUSTED',
          'domain', 'retinue', 'metadata', jsonb_build_object('attempts', r.attempt::text))));
      perform end_run_1(t, r, 'failed', null, null, h.input, null);
      ev := ev || jsonb_build_object('n', i, 'type', 'run.failed', 'run_id', r.run_id, 'session_id', r.session_id, 'data', jsonb_build_object('error', h.input));
      h.input := null;
    end if;
  elsif r.run_id is not null then
    if r.state = 'waiting' then
      for m in update approvals a set state = 'expired', decide_time = clock_timestamp(), decided_by = 'expiry'
          where a.tenant_id = t and a.run_id = r.run_id and a.state = 'pending' returning * loop
        i := i + 1;
        ev := ev || jsonb_build_object('n', i, 'type', 'approval.decided', 'run_id', r.run_id, 'session_id', r.session_id,
          'data', jsonb_build_object('approval_id', m.approval_id, 'decision', 'deny', 'by', 'expiry'));
      end loop;
      select jsonb_agg(jsonb_build_object('approval_id', a.approval_id, 'call_id', a.call_id, 'decision', a.state) order by a.approval_id) into h.approvals
        from approvals a where a.tenant_id = t and a.run_id = r.run_id;
    elsif r.attempt = 0 and r.kind = 'chat' then
      i := i + 1;
      ev := ev || jsonb_build_object('n', i, 'type', 'user.message', 'run_id', r.run_id, 'session_id', r.session_id,
        'data', jsonb_build_object('message_id', r.input -> 'message_id', 'text', r.input -> 'text'));
    end if;
    update runs x set state = 'running', token = tok, attempt = x.attempt + case when r.state = 'waiting' then 0 else 1 end,
        start_time = coalesce(x.start_time, clock_timestamp()),
        said_token = case when r.attempt = 0 and r.kind = 'chat' then tok else x.said_token end,
        said_n = case when r.attempt = 0 and r.kind = 'chat' then i else x.said_n end
      where x.tenant_id = t and x.run_id = r.run_id returning * into r;
    h.run_id := r.run_id; h.attempt := r.attempt; h.kind := r.kind; h.contact := r.contact; h.session_id := r.session_id; h.input := r.input;
    h.checkpoint := r.checkpoint; h.traceparent := r.traceparent; h.queued_s := extract(epoch from clock_timestamp() - r.create_time);
    h.history := history_1(t, p_log, r.session_id, r.run_id, tok, 200);
    h.runtime := l.runtime; h.runtime_age_s := extract(epoch from clock_timestamp() - l.runtime_time);
    select coalesce(max(x.token), 0) into h.keep_token from (
      select x.token, x.end_time from runs x where x.tenant_id = t and x.log_id = p_log and x.position < r.position
      order by x.position desc limit 200) x where x.end_time < clock_timestamp() - interval '10 minutes';
  end if;
  h.events := write_events_1(t, p_log, tok, ev);
  if h.run_id is not null then
    update logs x set token = tok, holder = p_holder, due_time = clock_timestamp() + ttl where x.tenant_id = t and x.log_id = p_log;
  else
    more := exists (select from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'queued') and parked_until is null;
    update logs x set token = tok, holder = null, due_time = case when more then clock_timestamp() else parked_until end
      where x.tenant_id = t and x.log_id = p_log;
    h.ring := more;
  end if;
  return h;
end $$;

-- What this very holder holds already: the answer to a claim or finish whose first answer was lost.
create function held_by_1(t text, p_log text, p_holder text) returns held_1 language plpgsql as $$
declare h held_1; r runs; l logs;
begin
  select * into l from logs x where x.tenant_id = t and x.log_id = p_log and x.holder = p_holder;
  if not found then return null; end if;
  select * into r from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'running' and x.token = l.token;
  if not found then return null; end if;
  h.token := l.token; h.run_id := r.run_id; h.attempt := r.attempt; h.kind := r.kind; h.contact := r.contact; h.session_id := r.session_id;
  h.input := r.input; h.checkpoint := r.checkpoint; h.traceparent := r.traceparent;
  h.queued_s := extract(epoch from clock_timestamp() - r.create_time); h.history := history_1(t, p_log, r.session_id, r.run_id, l.token, 200);
  h.runtime := l.runtime; h.runtime_age_s := extract(epoch from clock_timestamp() - l.runtime_time); h.keep_token := 0;
  select jsonb_agg(jsonb_build_object('approval_id', a.approval_id, 'call_id', a.call_id, 'decision', a.state) order by a.approval_id) into h.approvals
    from approvals a where a.tenant_id = t and a.run_id = r.run_id;
  select coalesce(jsonb_agg(jsonb_build_object('n', e.n, 'prev', e.prev_token || '-' || e.prev_n, 'type', e.type, 'data', e.data, 'run_id', e.run_id,
      'session_id', e.session_id, 'time', e.time) order by e.n), '[]') into h.events
    from events e where e.tenant_id = t and e.log_id = p_log and e.token = l.token;
  h.prev := coalesce(h.events -> 0 ->> 'prev', l.last_token || '-' || l.last_n);
  return h;
end $$;

-- token is null: nothing to do, or somebody holds it. Waits for the row: SKIP LOCKED would lose wake-ups.
create function claim_1(t text, p_log text, p_holder text, ttl interval, p_attempts int) returns held_1 language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  perform from logs x where x.tenant_id = t and x.log_id = p_log and x.due_time <= clock_timestamp() for no key update;
  if not found then return held_by_1(t, p_log, p_holder); end if;
  return take_1(t, p_log, p_holder, ttl, p_attempts);             -- a later statement: fresh snapshot, taken under the lock
end $$;

-- Renews leases of one process in one round trip, by token and holder: a late renewal must not revive a lease that was
-- given back. Answers for each still held its cancel wish; one that is missing in the answer is lost.
create function renew_1(p_tenants text[], p_logs text[], p_tokens bigint[], ttl interval)
returns table (tenant_id text, log_id text, token bigint, cancel text) language plpgsql as $$
declare ten text;
begin
  for ten in select distinct unnest(p_tenants) loop
    perform set_config('app.tenant_id', ten, true);
    -- Tasks' logs before contacts', as everywhere: one transaction holds the locks of all.
    perform from logs x join unnest(p_tenants, p_logs, p_tokens) as u (t, log_id, token) on x.log_id = u.log_id and x.token = u.token
      where u.t = ten and x.tenant_id = ten and x.holder is not null order by x.contact is not null, x.log_id for no key update of x;
    return query update logs x set due_time = clock_timestamp() + ttl from unnest(p_tenants, p_logs, p_tokens) as u (t, log_id, token)
      where u.t = ten and x.tenant_id = ten and x.log_id = u.log_id and x.token = u.token and x.holder is not null
      returning x.tenant_id, x.log_id, x.token,
        (select r.cancel from runs r where r.tenant_id = ten and r.log_id = x.log_id and r.state = 'running');
  end loop;
end $$;

-- Records a step: durable events and the state to go on from. ok false: the lease is lost, nothing was written.
create function checkpoint_1(t text, p_log text, p_token bigint, p_run text, ev jsonb, p_checkpoint bytea, p_decision jsonb, ttl interval)
returns table (ok bool, events jsonb) language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  update logs x set due_time = clock_timestamp() + ttl where x.tenant_id = t and x.log_id = p_log and x.token = p_token and x.holder is not null;
  if not found then return query select false, '[]'::jsonb; return; end if;
  update runs x set checkpoint = p_checkpoint, decision = p_decision, runtime = p_decision ->> 'runtime' where x.tenant_id = t and x.run_id = p_run;
  return query select true, write_events_1(t, p_log, p_token, ev);
end $$;

-- Parks a run until its approval is decided: no lease, nobody waits in a worker. Answers as checkpoint_1.
create function park_1(t text, p_log text, p_token bigint, p_run text, ev jsonb, p_checkpoint bytea, p_decision jsonb, p_approval text, p_n int,
  p_call text, p_tool text, p_summary text, p_expire interval)
returns table (ok bool, events jsonb, ring bool) language plpgsql as $$
declare r runs; until timestamptz := clock_timestamp() + p_expire; mailed bool;
begin
  perform set_config('app.tenant_id', t, true);
  perform from logs x where x.tenant_id = t and x.log_id = p_log and x.token = p_token and x.holder is not null for no key update;
  if not found then return query select false, '[]'::jsonb, false; return; end if;
  update runs x set state = 'waiting', checkpoint = p_checkpoint, decision = p_decision, runtime = p_decision ->> 'runtime'
    where x.tenant_id = t and x.run_id = p_run returning * into r;
  insert into approvals (tenant_id, approval_id, log_id, run_id, contact, call_id, tool, summary, expire_time)
    values (t, p_approval, p_log, p_run, r.contact, p_call, p_tool, p_summary, until);
  ev := ev || jsonb_build_object('n', p_n, 'type', 'approval.requested', 'run_id', p_run, 'session_id', r.session_id,
    'data', jsonb_build_object('approval_id', p_approval, 'call_id', p_call, 'tool', p_tool, 'summary', p_summary, 'expire_time', until));
  -- A wish to stop that came while it ran is honoured now: nobody would look at it for as long as the approval waits.
  if r.cancel is not null then perform cancel_idle_1(t, r, r.cancel, coalesce(r.cancel_by, '')); end if;
  mailed := exists (select from mail x where x.tenant_id = t and x.log_id = p_log);
  update logs x set holder = null, due_time = case when mailed then clock_timestamp() else until end,
    runtime = case when x.session_id = r.session_id then p_decision ->> 'runtime' else x.runtime end,
    runtime_time = case when x.session_id = r.session_id then clock_timestamp() else x.runtime_time end
    where x.tenant_id = t and x.log_id = p_log;
  return query select true, write_events_1(t, p_log, p_token, ev), mailed;
end $$;

-- Ends an attempt by its token alone. p_state: succeeded | failed | cancelled | queued (another attempt, after p_delay).
-- A wish to stop turns success into cancelled. p_next: take the log's next run under a new token, else give the log back.
-- ok false: the lease is lost, nothing was written. `next` is null where nothing was taken; ring: more waits in the log.
create function finish_1(t text, p_log text, p_token bigint, p_run text, p_state text, p_output text, p_usage jsonb, p_error jsonb,
  p_decision jsonb, p_agent text, ev jsonb, p_terminal_n int, p_delay interval, p_holder text, ttl interval, p_next bool, p_attempts int)
returns table (ok bool, state text, events jsonb, ring bool, told text, next held_1) language plpgsql as $$
declare r runs; h held_1; final text := p_state; d jsonb; heard text; written jsonb; more bool := false;
begin
  perform set_config('app.tenant_id', t, true);
  perform from logs x where x.tenant_id = t and x.log_id = p_log and x.token = p_token and x.holder is not null for no key update;
  if not found then
    -- Asked again after a lost answer? Then the run has ended, or waits, under this very token.
    select * into r from runs x where x.tenant_id = t and x.run_id = p_run and x.token = p_token
      and x.state in ('succeeded', 'failed', 'cancelled', 'queued') and p_state <> 'running';
    if not found or not exists (select from logs x where x.tenant_id = t and x.log_id = p_log) then
      return query select false, null::text, '[]'::jsonb, false, null::text, null::held_1; return;
    end if;
    select coalesce(jsonb_agg(jsonb_build_object('n', e.n, 'prev', e.prev_token || '-' || e.prev_n, 'type', e.type, 'data', e.data,
        'run_id', e.run_id, 'session_id', e.session_id, 'time', e.time) order by e.n), '[]') into written
      from router.events e where e.tenant_id = t and e.log_id = p_log and e.token = p_token and e.n >= coalesce((ev -> 0 ->> 'n')::int, p_terminal_n);
    return query select true, r.state, written, exists (select from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'queued'),
      r.notify_log, held_by_1(t, p_log, p_holder);
    return;
  end if;
  update runs x set decision = p_decision, runtime = p_decision ->> 'runtime' where x.tenant_id = t and x.run_id = p_run returning * into r;
  if r.cancel is not null and p_state in ('succeeded', 'queued') then final := 'cancelled'; end if;
  if final = 'queued' then
    update runs x set state = 'queued' where x.tenant_id = t and x.run_id = p_run;
    update logs x set holder = null, due_time = clock_timestamp() + p_delay where x.tenant_id = t and x.log_id = p_log;
    return query select true, final, '[]'::jsonb, false, null::text, null::held_1; return;
  end if;
  if final = 'cancelled' then d := cancelled_data_1(r);
  elsif final = 'failed' then d := jsonb_build_object('error', p_error);
  else d := jsonb_build_object('usage', p_usage); end if;
  written := write_events_1(t, p_log, p_token, ev || jsonb_build_object('n', p_terminal_n, 'type', 'run.' || final, 'run_id', p_run,
    'session_id', r.session_id, 'data', d));
  heard := end_run_1(t, r, final, p_output, p_usage, case when final = 'failed' then p_error end, p_agent);
  update logs x set runtime = p_decision ->> 'runtime', runtime_time = clock_timestamp()
    where x.tenant_id = t and x.log_id = p_log and p_decision is not null and x.session_id = r.session_id;
  if p_next then
    h := take_1(t, p_log, p_holder, ttl, p_attempts);
    return query select true, final, written, coalesce(h.ring, false), heard, h; return;
  end if;
  more := exists (select from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'queued')
    or exists (select from mail x where x.tenant_id = t and x.log_id = p_log);
  update logs x set holder = null, due_time = case when more then clock_timestamp() end where x.tenant_id = t and x.log_id = p_log;
  return query select true, final, written, more, heard, null::held_1;
end $$;
