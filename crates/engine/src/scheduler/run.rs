//! The loop of the engine's thread: takes commands, asks [`decide`] whose pass is next, makes it, and tells what came
//! of it. Nothing here is seen from outside; the handle and the public types are in the module above.

use super::cache::Cache;
use super::job::{Job, Over, caught};
use super::pass::lacks_room;
use super::{Command, Event, Home, Moved, Outcome, RequestError, Seat, Service, Submission};
use crate::decide::{self, Choice, Limits, Running, View};
use crate::generate::Answer;
use crate::m3::{Memory, MemoryError, Placed};
use crate::session::{Buffers, Room, Session};
use crate::threads::Pool;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

/// A model that has jobs.
pub(super) struct Seated {
    /// What [`decide`] calls it.
    pub model: u32,
    pub seat: Seat,
    /// What its shared passes compute with, and how large they may be.
    pub buffers: Buffers,
    pub room: Room,
}

pub(super) struct Scheduler {
    pub(super) pool: Pool,
    limits: Limits,
    inbox: Receiver<Command>,
    pub(super) home: Arc<Home>,
    pub(super) jobs: Vec<Job>,
    pub(super) seats: Vec<Seated>,
    pub(super) cache: Cache,
    running: Option<Running>,
    pub(super) turn: u64,
    next_id: u64,
    next_seat: u32,
    /// Who is expected when has changed.
    news: bool,
    /// Turn at which the memory's forecast is half used up.
    refresh: u64,
}

impl Scheduler {
    pub(super) fn new(pool: Pool, limits: Limits, inbox: Receiver<Command>, home: Arc<Home>) -> Self {
        Self {
            pool,
            limits,
            inbox,
            home,
            jobs: Vec::new(),
            seats: Vec::new(),
            cache: Cache::new(),
            running: None,
            turn: 0,
            next_id: 0,
            next_seat: 0,
            news: false,
            refresh: 0,
        }
    }

    fn memory(&self) -> Option<&Memory> {
        self.home.memory()
    }

    pub(super) fn run(&mut self) {
        loop {
            if self.jobs.is_empty() {
                match self.inbox.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let gone: Vec<Job> = self.jobs.extract_if(.., |job| job.alive.strong_count() == 0).collect();
            if !gone.is_empty() {
                for job in gone {
                    self.keep(job.model, job.session);
                }
                self.resettle();
            }
            self.pass();
        }
    }

    /// Seats must not keep models that nobody asks any more: they may have been removed.
    fn clear_seats(&mut self) {
        let jobs = &self.jobs;
        self.seats.retain(|seated| jobs.iter().any(|job| job.model == seated.model));
    }

    pub(super) fn seated(&self, model: u32) -> Option<&Seated> {
        self.seats.iter().find(|seated| seated.model == model)
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.admit(*submission),
            Command::SetBudget(budget, reply) => {
                self.cache.clear();
                // Buffers come back when they are needed.
                self.jobs.iter_mut().for_each(|job| job.session.rest());
                self.seats.iter_mut().for_each(|seated| seated.buffers.rest());
                let done = match self.memory() {
                    Some(memory) => memory.set_budget(budget),
                    None => Err(MemoryError::Unbounded),
                };
                for seated in &mut self.seats {
                    if let Some(job) = self.jobs.iter().find(|job| job.model == seated.model) {
                        seated.room.again(&job.session, self.pool.threads());
                    }
                }
                let _ = reply.send(done);
            }
            Command::Unload(name, reply) => {
                let done =
                    self.memory().ok_or(MemoryError::Unbounded).and_then(|memory| memory.unload(&name));
                let _ = reply.send(done);
            }
            Command::Forget(seat, reply) => {
                match seat {
                    Some(seat) => self.cache.forget(&seat),
                    None => drop(self.cache.clear()),
                }
                let _ = reply.send(());
            }
        }
    }

    fn admit(&mut self, submission: Submission) {
        let Submission { seat, tenancy, request, mut listener, alive, arrived, place } = submission;
        let opened = caught(|| {
            let mut session = seat.open(&self.pool, request.session)?;
            if session.shares() {
                session.rest();
            }
            #[cfg(test)]
            super::tests::trip(super::tests::OPENING);
            let answer = Answer::new(&session, request.prompt, request.generate)?;
            Ok((session, answer))
        });
        drop(tenancy);
        let (session, answer) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                drop((seat, place));
                return listener(Event::Failed(error));
            }
        };
        let model = self.seat(seat, &session);
        let (id, service) = (self.next_id, Service::default());
        self.next_id += 1;
        let (served, turn) = (arrived, u64::MAX);
        let (begun, stalled) = (None, false);
        let job = Job {
            id,
            model,
            session,
            answer,
            listener,
            alive,
            arrived,
            begun,
            served,
            service,
            turn,
            stalled,
            place,
        };
        self.jobs.push(job);
        self.news = true;
    }

    /// What [`decide`] calls the model of a session that has come.
    fn seat(&mut self, seat: Seat, session: &Session) -> u32 {
        let threads = self.pool.threads();
        if let Some(seated) = self.seats.iter_mut().find(|seated| seated.seat.is(&seat)) {
            if seated.room.admit(session, threads) {
                seated.buffers.rest();
            }
            return seated.model;
        }
        self.next_seat = self.next_seat.wrapping_add(1);
        let (buffers, room) = (Buffers::new(), Room::new(session, threads));
        self.seats.push(Seated { model: self.next_seat, seat, buffers, room });
        self.next_seat
    }

    /// Makes one pass for those who are next.
    fn pass(&mut self) {
        // One instant for all, or those that are looked at later would seem to have waited longer.
        let now = Instant::now();
        let together = |job: &Job| match self.seated(job.model) {
            Some(seated) if job.session.shares() => seated.room.members() as u32,
            _ => 1,
        };
        let requests: Vec<decide::Request> = self
            .jobs
            .iter()
            .filter(|job| !job.stalled)
            .map(|job| decide::Request {
                id: job.id,
                model: job.model,
                waited: now.saturating_duration_since(job.served),
                passes: job.answer.passes_left(job.session.batch()),
                together: together(job),
            })
            .collect();
        let view = View { requests: &requests, running: self.running };
        let Some(choice) = decide::next(&view, &self.limits) else { return };
        if std::mem::take(&mut self.news) || self.turn >= self.refresh {
            self.refresh = self.turn + decide::MOST_TURNS as u64 / 2;
            self.announce(&view);
        }
        self.make_way(&choice);
        self.running = Some(choice.running(self.running));
        self.turn += u64::from(choice.begins);
        let place = |id: &u64| self.jobs.iter().position(|job| job.id == *id);
        let at: Vec<usize> = choice.requests.iter().filter_map(place).collect();
        let mut over = match at[..] {
            [at] if !self.jobs[at].session.shares() => self.step(at),
            _ => self.pass_together(at),
        };
        // From the end, since others take the places of those that go.
        over.sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (at, over) in over {
            self.end(at, over);
        }
    }

    /// A job is over.
    fn end(&mut self, at: usize, over: Over) {
        let job = self.jobs.swap_remove(at);
        let Job { model, session, answer, mut listener, service, place, .. } = job;
        match over {
            Err(RequestError::Fault(_)) => drop(session),
            _ => self.keep(model, session),
        }
        self.resettle();
        // Its memory, but for what is kept in case it is of use, and its place are free before anybody hears of the end.
        drop(place);
        let outcome = over.and_then(|()| caught(|| Ok(Outcome { generation: answer.finish(), service })));
        listener(match outcome {
            Ok(outcome) => Event::Done(Box::new(outcome)),
            Err(error) => Event::Failed(error),
        });
    }

    /// Keeps what a session that is over has computed, as long as nobody needs the room.
    fn keep(&mut self, model: u32, session: Session) {
        let seat = self.seated(model).map(|seated| seated.seat.clone());
        let prefix = session.prefix();
        drop(session);
        if let (Some(seat), Some(prefix)) = (seat, prefix)
            && self.home.has(&seat)
        {
            self.cache.keep(seat, prefix);
        }
    }

    /// Somebody has gone: seats of models without jobs go, there may be room again, and other turns are to come.
    fn resettle(&mut self) {
        self.clear_seats();
        self.jobs.iter_mut().for_each(|job| job.stalled = false);
        self.news = true;
    }

    /// Makes room for the job at `at`, whose step found none: what is kept of requests that are over goes, or else whoever came
    /// last of those that hold keys and values gives them up, and waits until a request is over. False if there is no other.
    /// The request that came first never is the one, so somebody always goes on.
    pub(super) fn preempt(&mut self, at: usize) -> bool {
        if self.cache.clear() {
            return true;
        }
        let holds = |job: &Job| job.session.bytes() > 0;
        if !self.jobs.iter().enumerate().any(|(i, job)| i != at && holds(job)) {
            return false;
        }
        let id = self.jobs[at].id;
        let candidates = self.jobs.iter_mut().filter(|job| job.id == id || job.session.bytes() > 0);
        let Some(last) = candidates.max_by_key(|job| job.id) else { return false };
        last.session.truncate(0);
        last.session.rest();
        last.stalled = true;
        self.news = true;
        true
    }

    /// Tells the memory who is expected when.
    fn announce(&self, view: &View<'_>) {
        let Some(memory) = self.memory() else { return };
        let turns = decide::turns(view, &self.limits);
        let placed = |model: u32| match self.seated(model).map(|seated| &seated.seat) {
            Some(Seat::Placed(placed)) => Some(placed.clone()),
            _ => None,
        };
        let turns: Vec<(Placed, u32)> =
            turns.into_iter().filter_map(|(model, passes)| Some((placed(model)?, passes))).collect();
        memory.expect(&turns);
    }

    /// Lets the requests of the model that made the last pass keep their keys and values and nothing else, if another model
    /// is next.
    fn make_way(&mut self, choice: &Choice) {
        let before = self.running.map(|running| running.model).filter(|before| *before != choice.model);
        if let Some(seated) = self.seats.iter_mut().find(|seated| Some(seated.model) == before) {
            seated.buffers.rest();
        }
    }

    /// One step of a job that makes its passes alone; how it ended if it did.
    fn step(&mut self, at: usize) -> Vec<(usize, Over)> {
        let memory = self.home.memory();
        let (job, pool) = (&mut self.jobs[at], &mut self.pool);
        let (start, before) = (Instant::now(), Moved::now(memory));
        job.begin(self.turn, start);
        let (session, answer) = (&mut job.session, &mut job.answer);
        let stepped = caught(|| Ok(answer.step(session, pool)?));
        job.passed(start, &before, &Moved::now(memory));
        match job.settle(pool, stepped) {
            Some(Err(error)) if lacks_room(&error) && self.preempt(at) => Vec::new(),
            over => over.map(|over| (at, over)).into_iter().collect(),
        }
    }
}
