-- What was said becomes facts by tasks of our own, which nobody hears of.
set local search_path = router;

create index runs_extracting on runs (tenant_id, notify_log, idem_key) where kind = 'memory.extract';

-- Mended: the end of a task that only remembers is told to nobody. The log that it was asked in stays known, so that it goes with its
-- contact.
create or replace function tell_end_1(t text, r runs, p_state text, p_summary text) returns text language plpgsql as $$
begin
  if r.notify_log is null or starts_with(r.kind, 'memory.') then return null; end if;
  -- Locked even where a holder is seen: it may be giving the log back, and has looked for mail already.
  perform from logs l where l.tenant_id = t and l.log_id = r.notify_log for no key update;
  if not found then return null; end if;
  insert into mail (tenant_id, log_id, session_id, run_id, type, data)
    select t, l.log_id, l.session_id, r.run_id, 'task.finished',
      jsonb_build_object('run_id', r.run_id, 'kind', r.kind, 'state', p_state, 'summary', left(coalesce(p_summary, ''), 500))
    from logs l where l.tenant_id = t and l.log_id = r.notify_log;
  update logs l set due_time = clock_timestamp() where l.tenant_id = t and l.log_id = r.notify_log and l.holder is null;
  return r.notify_log;
end $$;

-- Mended: nor is it told to webhooks; and what was brought from elsewhere, which belongs to no run, was said long ago.
create or replace function send_events_1(t text, p_log text, p_token bigint, ev jsonb, p_size_max int, p_behind_max interval) returns void language plpgsql as $$
begin
  if starts_with(p_log, 'tsk_') and exists (select from runs r where r.tenant_id = t and r.log_id = p_log and starts_with(r.kind, 'memory.')) then
    return;
  end if;
  insert into deliveries (tenant_id, delivery_id, webhook_id, log_id, contact, token, n, event_type, session_id, run_id, data, event_time,
      state, last_result, end_time)
    select t, 'dlv_' || replace(uuidv7()::text, '-', ''), w.webhook_id, p_log,
      coalesce((select l.contact from logs l where l.tenant_id = t and l.log_id = p_log),
        (select r.contact from runs r where r.tenant_id = t and r.run_id = e.run_id), ''),
      p_token, e.n, e.type, e.session_id, coalesce(e.run_id, ''), case when octet_length(e.data::text) <= p_size_max then e.data end, e.time,
      case when b.late then 'dead' else 'pending' end, case when b.late then 'its receiver is too far behind' else '' end,
      case when b.late then clock_timestamp() end
    from jsonb_to_recordset(ev) as e (n int, type text, data jsonb, run_id text, session_id text, time timestamptz)
      join webhooks w on w.tenant_id = t and w.state = 'active' and e.type = any (w.event_types)
        and not (coalesce(e.run_id, '') = '' and e.type in ('user.message', 'assistant.message')),
      lateral (select exists (select from deliveries d where d.webhook_id = w.webhook_id and d.state = 'pending'
        and d.due_time < clock_timestamp() - p_behind_max) as late offset 0) b
    order by e.n;
end $$;

-- The part of a session that is due to be read for facts: from behind the last one to the p_every-th message of a user since, and the
-- answers to that. No row: so many were not said, and the last of them answered, yet.
create function unread_1(t text, p_log text, p_session text, p_every int, p_limit int)
returns table (through_token bigint, through_n int, said_time timestamptz, lines jsonb) language plpgsql as $$
declare former text; last_run text; from_token bigint := 0; from_n int := 0; next_token bigint; next_n int;
begin
  perform set_config('app.tenant_id', t, true);
  -- A key is "memory.extract:{session}:{through}"; the prompt, which is long, is not looked at.
  select split_part(r.idem_key, ':', 3) into former from runs r
    where r.tenant_id = t and r.notify_log = p_log and r.kind = 'memory.extract'
      and starts_with(r.idem_key, 'memory.extract:' || p_session || ':')
    -- The furthest, not the last: a dead letter's is asked anew later on.                                        -- index runs_extracting
    order by split_part(split_part(r.idem_key, ':', 3), '-', 1)::bigint desc, split_part(split_part(r.idem_key, ':', 3), '-', 2)::int desc limit 1;
  if former is not null then
    from_token := split_part(former, '-', 1)::bigint; from_n := split_part(former, '-', 2)::int;
  end if;
  select e.token, e.n, e.time, e.run_id into through_token, through_n, said_time, last_run from events e
    where e.tenant_id = t and e.log_id = p_log and e.session_id = p_session and e.type = 'user.message' and (e.token, e.n) > (from_token, from_n)
      and e.run_id <> ''                        -- what was brought from elsewhere came with its facts
    order by e.token, e.n offset p_every - 1 limit 1;                                                            -- index events_messages
  if not found then return; end if;
  -- Not answered yet: it is looked at again once that run is over.
  if exists (select from runs r where r.tenant_id = t and r.run_id = last_run and r.end_time is null) then return; end if;
  select e.token, e.n into next_token, next_n from events e
    where e.tenant_id = t and e.log_id = p_log and e.session_id = p_session and e.type = 'user.message' and (e.token, e.n) > (through_token, through_n) and e.run_id <> ''
    order by e.token, e.n limit 1;
  select coalesce(jsonb_agg(jsonb_build_object('role', case h.type when 'user.message' then 'user' else 'assistant' end, 'text', h.data ->> 'text')
      order by h.token, h.n), '[]') into lines from (
    select e.type, e.data, e.token, e.n from events e
    where e.tenant_id = t and e.log_id = p_log and e.session_id = p_session and e.type in ('user.message', 'assistant.message')
      and e.run_id <> '' and (e.token, e.n) > (from_token, from_n) and (next_token is null or (e.token, e.n) < (next_token, next_n))
      and (e.type = 'user.message' or e.run_id <> all (array(select r.run_id from runs r where r.tenant_id = t and r.log_id = p_log and r.dropped)))
      and e.run_id <> all (array(select r.run_id from runs r where r.tenant_id = t and r.log_id = p_log and r.dropped and r.retried_as is not null))
    order by e.token desc, e.n desc limit p_limit) h;
  return next;
end $$;

-- Accepts a task that reads a part of a session, as submit_run_2 does, unless its contact is deleted: it would be made anew, with what
-- was said before. Its log is locked, so that whoever deletes it takes the task with it.
create function submit_unread_1(t text, p_contact text, p_asked_in text, p_read_session text, p_token bigint, p_n int, p_log text, p_session text,
  p_run text, p_kind text, p_key text, p_digest bytea, p_input jsonb, p_queue_max int, p_later_max int)
returns table (outcome text) language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  perform from logs x where x.tenant_id = t and x.log_id = p_asked_in for no key update;
  if not found or not exists (select from events e where e.tenant_id = t and e.log_id = p_asked_in and e.session_id = p_read_session
      and e.token = p_token and e.n = p_n) then
    return query select 'deleted'; return;
  end if;
  return query select s.outcome from submit_run_2(t, p_contact, p_log, true, p_session, p_run, p_kind, p_key, p_digest, p_input, 'enqueue', '',
    p_asked_in, '', null, p_queue_max, p_later_max, null) s;
end $$;

-- As remember_1, and nothing is remembered by a run that was deleted with its contact; else the contact is made if it is missing. Whoever
-- deletes it waits for this, and finds what it wrote.
create function remember_2(t text, p_contact text, p_run text, p_facts jsonb, p_max int) returns setof facts language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  if p_run <> '' then
    perform from runs r where r.tenant_id = t and r.run_id = p_run for key share;
    if not found then return; end if;
  elsif p_contact <> '' then
    insert into contacts (tenant_id, contact, contact_id) values (t, p_contact, 'con_' || replace(uuidv7()::text, '-', '')) on conflict do nothing;
  end if;
  perform from contacts c where c.tenant_id = t and c.contact = p_contact for key share;
  -- A memory that is full makes room for what runs learn; whoever remembers by hand is told.
  if p_run <> '' then
    perform pg_advisory_xact_lock(hashtextextended('facts ' || t || ' ' || p_contact, 0));
    delete from facts f where f.tenant_id = t and f.fact_id in (
      select x.fact_id from facts x where x.tenant_id = t and x.contact = p_contact
        order by x.importance, x.fact_id limit greatest(0, - p_max
          + (select count(*) from facts y where y.tenant_id = t and y.contact = p_contact)
          + (select count(distinct n ->> 'digest') from jsonb_array_elements(p_facts) n where not exists (     -- what is known needs no room
              select from facts y where y.tenant_id = t and y.contact = p_contact and y.digest = decode(n ->> 'digest', 'hex')))));
  end if;
  return query select * from remember_1(t, p_contact, p_run, p_facts, p_max);
end $$;
