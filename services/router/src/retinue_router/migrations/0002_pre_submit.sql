-- Accepting runs, and what others than the holder may do to them. Names carry a version, so that old and new services
-- run side by side.
set local search_path = router;

-- Tells a run's end to the log that waits to hear of it. The target's row is locked after the run's own log.
create function tell_end_1(t text, r runs, p_state text, p_summary text) returns text language plpgsql as $$
begin
  if r.notify_log is null then return null; end if;
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

-- Ends a run that nobody executes (queued or waiting): the row at once, its event as mail. The caller holds the log's row.
create function cancel_idle_1(t text, r runs, p_wish text, p_by text) returns void language plpgsql as $$
declare d jsonb := jsonb_build_object('by', p_by);
begin
  if p_wish = 'rollback' and r.said_token is not null then
    d := d || jsonb_build_object('rewind_to', r.said_token || '-' || r.said_n);
  end if;
  update runs x set state = 'cancelled', cancel = p_wish, cancel_by = p_by, dropped = (p_wish = 'rollback'), end_time = clock_timestamp()
    where x.tenant_id = t and x.run_id = r.run_id;
  update approvals a set state = 'expired', decide_time = clock_timestamp(), decided_by = p_by
    where a.tenant_id = t and a.run_id = r.run_id and a.state = 'pending';
  insert into mail (tenant_id, log_id, session_id, run_id, type, data) values (t, r.log_id, r.session_id, r.run_id, 'run.cancelled', d);
  perform tell_end_1(t, r, 'cancelled', null);
end $$;

-- Makes sure that a log is there and locks its row; a log that was deleted goes on above its former tokens.
create function open_log_1(t text, p_log text, p_contact text, p_session text) returns logs language plpgsql as $$
declare l logs;
begin
  for i in 1..10 loop
    select * into l from logs x where x.tenant_id = t and x.log_id = p_log for no key update;
    if found then return l; end if;
    -- Any conflict counts: of two who make the same log at once, one may meet the other at the contact's index first.
    insert into logs as x (tenant_id, log_id, contact, session_id, token)
      values (t, p_log, p_contact, p_session, coalesce((select d.token + 1 from deleted_logs d where d.tenant_id = t and d.log_id = p_log), 0))
      on conflict do nothing returning * into l;
    exit when found;
  end loop;
  if l.log_id is null then raise exception 'a log vanished each time it was seen' using errcode = '40001'; end if;
  if p_contact is not null then
    insert into contacts (tenant_id, contact, contact_id) values (t, p_contact, 'con_' || substr(p_session, 5)) on conflict do nothing;
  end if;
  return l;
end $$;

-- Accepts a run: accepted | replay | key_reused | deleted | busy. ring: no live holder will find the run by itself.
-- poke: the holder of an active run that is to stop. What an accepted run is made of comes with the answer, so that
-- nobody has to read it.
create function submit_run_1(t text, p_contact text, p_log text, p_task bool, p_session text, p_run text, p_kind text, p_key text,
  p_digest bytea, p_input jsonb, p_busy text, p_by text, p_notify text, p_traceparent text)
returns table (outcome text, run_id text, ring bool, poke text, session_id text, after_token bigint, after_n int, create_time timestamptz)
language plpgsql as $$
declare l logs; r runs; active runs; k record;
begin
  perform set_config('app.tenant_id', t, true);                  -- the wall, in the same round trip
  ring := false;
  for i in 1..3 loop
    if p_key is not null then
      select x.run_id, x.digest into k from runs x where x.tenant_id = t and x.idem_key = p_key;
      if found then
        outcome := case when k.digest = p_digest then 'replay' else 'key_reused' end; run_id := k.run_id; return next; return;
      end if;
      select x.run_id, x.digest into k from deleted_keys x where x.tenant_id = t and x.idem_key = p_key;
      if found then
        outcome := case when k.digest = p_digest then 'deleted' else 'key_reused' end; run_id := k.run_id; return next; return;
      end if;
    end if;
    if p_notify is not null then perform open_log_1(t, p_notify, p_contact, 'ses_' || substr(p_run, 5)); end if;
    l := open_log_1(t, p_log, case when p_task then null else p_contact end, p_session);  -- locked: order, on_busy, no lost wake-up
    -- A fresh log may follow one that was deleted, with its keys, while this call waited for the lock.
    if p_key is not null and l.next_position = 1 and exists (select from deleted_keys x where x.tenant_id = t and x.idem_key = p_key) then
      continue;
    end if;
    select * into active from runs x where x.tenant_id = t and x.log_id = p_log and x.state in ('running', 'waiting');
    if p_busy = 'reject' and (active.run_id is not null
        or exists (select from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'queued')) then
      outcome := 'busy'; return next; return;
    end if;
    insert into runs (tenant_id, run_id, log_id, session_id, contact, kind, position, idem_key, digest, input, notify_log,
        after_token, after_n, traceparent)
      values (t, p_run, p_log, l.session_id, p_contact, p_kind, l.next_position, p_key, p_digest, p_input, p_notify,
        l.last_token, l.last_n, p_traceparent)
      on conflict (tenant_id, idem_key) where idem_key is not null do nothing returning * into r;
    if found then
      if p_busy in ('interrupt', 'rollback') and active.run_id is not null then
        if active.state = 'waiting' then
          perform cancel_idle_1(t, active, p_busy, p_by);
          l.due_time := null;
        else
          update runs x set cancel = case x.cancel when 'rollback' then x.cancel else p_busy end, cancel_by = p_by
            where x.tenant_id = t and x.run_id = active.run_id;
        end if;
      end if;
      update logs x set next_position = x.next_position + 1, due_time = coalesce(l.due_time, clock_timestamp())
        where x.tenant_id = t and x.log_id = p_log returning * into l;
      return query select 'accepted', p_run, l.due_time <= clock_timestamp(),
        case when active.state = 'running' and p_busy in ('interrupt', 'rollback') then l.holder end,
        r.session_id, r.after_token, r.after_n, r.create_time;
      return;
    end if;
  end loop;                                                       -- lost the key's race: the next look sees the winner
  raise exception 'an idempotency key vanished between two looks' using errcode = '40001';
end $$;

-- Asks a run to stop: at once where nobody executes it, else a wish that its holder finds. No row: no such run.
-- told: the log that hears of a task's end.
create function cancel_run_1(t text, p_run text, p_by text) returns table (state text, log_id text, ring bool, poke text, told text)
language plpgsql as $$
declare r runs; l logs;
begin
  perform set_config('app.tenant_id', t, true);
  select * into r from runs x where x.tenant_id = t and x.run_id = p_run;
  if not found then return; end if;
  select * into l from logs x where x.tenant_id = t and x.log_id = r.log_id for no key update;
  select * into r from runs x where x.tenant_id = t and x.run_id = p_run;        -- again, under the lock
  if not found then return; end if;                               -- deleted in between
  if r.state in ('queued', 'waiting') then
    perform cancel_idle_1(t, r, 'cancel', p_by);
    if l.holder is null then update logs x set due_time = clock_timestamp() where x.tenant_id = t and x.log_id = r.log_id; end if;
    return query select 'cancelled', r.log_id, l.holder is null, null::text, r.notify_log;
  elsif r.state = 'running' then
    -- A wish to roll back, which the client was promised, outlives a plain one.
    update runs x set cancel = coalesce(x.cancel, 'cancel'), cancel_by = coalesce(x.cancel_by, p_by) where x.tenant_id = t and x.run_id = p_run;
    return query select r.state, r.log_id, l.due_time <= clock_timestamp(), l.holder, null::text;
  else
    return query select r.state, r.log_id, false, null::text, null::text;
  end if;
end $$;

-- Answers an approval once: decided | closed; no row: no such approval.
create function decide_approval_1(t text, p_approval text, p_decision text, p_by text)
returns table (outcome text, log_id text, ring bool) language plpgsql as $$
declare a approvals; l logs; ses text;
begin
  perform set_config('app.tenant_id', t, true);
  select * into a from approvals x where x.tenant_id = t and x.approval_id = p_approval;
  if not found then return; end if;
  select * into l from logs x where x.tenant_id = t and x.log_id = a.log_id for no key update;
  update approvals x set state = p_decision, decide_time = clock_timestamp(), decided_by = p_by
    where x.tenant_id = t and x.approval_id = p_approval and x.state = 'pending' and x.expire_time > clock_timestamp();
  if not found then return query select 'closed', a.log_id, false; return; end if;
  select r.session_id into ses from runs r where r.tenant_id = t and r.run_id = a.run_id;
  insert into mail (tenant_id, log_id, session_id, run_id, type, data) values (t, a.log_id, ses, a.run_id, 'approval.decided',
    jsonb_build_object('approval_id', p_approval, 'decision', p_decision, 'by', p_by));
  update logs x set due_time = clock_timestamp() where x.tenant_id = t and x.log_id = a.log_id and x.holder is null;
  return query select 'decided', a.log_id, l.holder is null;
end $$;

-- Begins a fresh session in a contact's log; runs accepted before stay in the old one. No row: no such contact.
create function reset_contact_1(t text, p_contact text, p_log text, p_session text) returns table (session_id text) language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  perform from contacts c where c.tenant_id = t and c.contact = p_contact;
  if not found then return; end if;
  perform open_log_1(t, p_log, p_contact, p_session);
  return query update logs x set session_id = p_session, runtime = null, runtime_time = null
    where x.tenant_id = t and x.log_id = p_log returning x.session_id;
end $$;

-- Removes a contact with all that belongs to it; the lease is gone with the row, so that an active holder is refused.
-- Answers the logs that were removed, with the last token that anyone may still speak under; no row: no such contact.
create function delete_contact_1(t text, p_contact text, p_log text) returns table (log_id text, token bigint) language plpgsql as $$
declare doomed text[];
begin
  perform set_config('app.tenant_id', t, true);
  perform from contacts x where x.tenant_id = t and x.contact = p_contact;
  if not found then return; end if;
  for i in 1..10 loop
    begin
      select coalesce(array_agg(distinct x.log_id), '{}') into doomed from runs x where x.tenant_id = t and x.notify_log = p_log;
      perform from logs x where x.tenant_id = t and x.log_id = any (doomed) order by x.log_id for update;    -- tasks first, as everywhere
      perform open_log_1(t, p_log, p_contact, '');                -- made if missing: whoever accepts a run meanwhile waits for it
      exit when not exists (select from runs x where x.tenant_id = t and x.notify_log = p_log and not x.log_id = any (doomed));
      raise exception 'a task was accepted in between' using errcode = 'RT001';
    exception when sqlstate 'RT001' then                          -- the locks are given back: look again
      if i = 10 then raise exception 'tasks are accepted without a pause' using errcode = '40001'; end if;
    end;
  end loop;
  doomed := doomed || p_log;
  insert into deleted_logs select x.tenant_id, x.log_id, x.token from logs x where x.tenant_id = t and x.log_id = any (doomed)
    on conflict on constraint deleted_logs_pkey do update set token = greatest(deleted_logs.token, excluded.token);
  insert into deleted_keys select x.tenant_id, x.idem_key, x.digest, x.run_id from runs x
    where x.tenant_id = t and x.log_id = any (doomed) and x.idem_key is not null on conflict do nothing;
  delete from mail x where x.tenant_id = t and x.log_id = any (doomed);
  delete from events x where x.tenant_id = t and x.log_id = any (doomed);
  delete from approvals x where x.tenant_id = t and x.log_id = any (doomed);
  delete from runs x where x.tenant_id = t and x.log_id = any (doomed);
  delete from logs x where x.tenant_id = t and x.log_id = any (doomed);
  delete from contacts x where x.tenant_id = t and x.contact = p_contact;
  return query select x.log_id, x.token from deleted_logs x where x.tenant_id = t and x.log_id = any (doomed);
end $$;
